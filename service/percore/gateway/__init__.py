"""The gateway: HAProxy with one queue for all pods, and the small controller that tells it which pods there are.

A call walks through HAProxy alone; nothing here is on its way. If the controller dies, HAProxy goes on with the pods it knows.
"""
