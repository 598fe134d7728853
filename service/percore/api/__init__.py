"""What callers speak: TensorFlow Serving's REST and the Open Inference Protocol, version 2.

Nothing is imported here: the exporter takes ``base``, ``readonly`` and ``openapi`` from this package and must not load numpy.
"""
