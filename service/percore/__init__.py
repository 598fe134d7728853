"""percore: one call, one core, for slow TensorFlow models behind Flask and Gunicorn."""

__version__ = "0.1.0"
