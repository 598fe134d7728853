"""The worker: a Gunicorn sync worker that computes one call at a time, with a watchdog thread. And the arbiter over it."""
