"""Measures percore and the set-ups that people use instead: ``python -m bench``, or ``make bench``.

Every server is a real process on a free port of this machine. Results go to ``build/bench``; nothing here is imported by the
service.
"""
