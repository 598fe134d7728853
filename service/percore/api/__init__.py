"""The protocols of callers: TensorFlow Serving's REST and the Open Inference Protocol, version 2.

Nothing is imported here: the status server takes ``flask_app``, ``readonly`` and ``openapi``
from this package, and it must not load numpy.
"""
