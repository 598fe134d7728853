"""Starts real processes of percore, for tests and benches."""
