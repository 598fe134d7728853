"""The gateway: one process with one queue for all pods.

::

    client -> front -> spool -> queue -> dispatch -> upstream -> worker          pods <- endpoints
              HTTP     body     order    binds a     one connection              reads <- status servers, kept
              bounds                     free pod    to a worker

A call is received whole, queued, bound to a pod only when that pod has said that it is free, and answered. ``intake`` has the
whole path of a call; docs/architecture.md has the states.
"""
