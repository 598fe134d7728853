"""Makes the leases of gateways shorter: ``SHRINK`` has new values for constants of ``stored_calls``.

Python imports this module by itself when its folder is in PYTHONPATH.
"""

import os
import sys

if "gateway" in sys.orig_argv and "SHRINK" in os.environ:
    from percore.gateway.store import stored_calls

    for each in os.environ["SHRINK"].split():
        name, _, value = each.partition("=")
        assert hasattr(stored_calls, name), name
        setattr(stored_calls, name, float(value))
