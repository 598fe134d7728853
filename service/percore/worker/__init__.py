"""The worker, a Gunicorn sync worker that computes one call at a time, its watchdog thread, and the arbiter that starts
workers.
"""
