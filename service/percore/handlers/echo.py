"""Handlers that compute nothing, for benches and tests. The time of such a call is percore's own."""

from __future__ import annotations

import time

from percore.handlers import Tensors
from percore.model_metadata import Signature, TensorSpec


class Echo:
    """Answers with its inputs, of any name and type."""

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, inputs: Tensors) -> Tensors:
        """Return ``inputs``."""
        return inputs


class Sleep:
    """Waits without computing, like a call that waits for a disk or a network."""

    signature = Signature(
        inputs=(TensorSpec("seconds", "float64", (None,)),),
        outputs=(TensorSpec("seconds", "float64", (None,)),),
    )

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, inputs: Tensors) -> Tensors:
        """Sleep for the largest of ``seconds``, shape (any,); return ``seconds``."""
        time.sleep(max(0.0, *inputs["seconds"].tolist(), 0.0))
        return inputs
