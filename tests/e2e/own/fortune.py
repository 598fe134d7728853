"""A handler as a user writes it: without a base class, and without an import of percore."""

from typing import Any

import numpy as np


class Fortune:
    """Multiplies its input."""

    def load(self) -> None:
        """Called once in the worker."""
        self.weights = np.array([2.0, 3.0])

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Called for each call."""
        return {"fortune": inputs["stars"] @ self.weights}
