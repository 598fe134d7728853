"""The process beside the workers that answers while they compute: probes, metrics, and whatever is read only.

It is a process of its own, so that a crash of one side never takes the other down, and it imports neither numpy nor
TensorFlow, so that it stays small.
"""
