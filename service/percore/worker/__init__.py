"""What a worker is: a Gunicorn sync worker with one call, one clock and one watchful thread."""
