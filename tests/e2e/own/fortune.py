"""A handler as a user writes one: no base class, nothing of percore imported."""

from typing import Any

import numpy as np


class Fortune:
    """Multiplies."""

    def load(self) -> None:
        """Once in the worker."""
        self.weights = np.array([2.0, 3.0])

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Once a call."""
        return {"fortune": inputs["stars"] @ self.weights}
