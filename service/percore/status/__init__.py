"""The status server of workers: it answers probes, metrics and reads while the workers compute.

In a pod it is a process of its own, so that a crash of one does not end the other. It imports neither numpy nor TensorFlow, so
that it stays small.
"""
