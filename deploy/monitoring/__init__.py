"""The Grafana dashboard, written in Python and shipped as JSON; only ``tools.generate`` and tests import it."""
