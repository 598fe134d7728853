"""Handlers that the tests of the service load."""

import time

import numpy as np

from service.handlers import Tensors


class SlowToLoad:
    """Takes longer to load than every other limit of the test."""

    def load(self) -> None:
        time.sleep(3.5)

    def predict(self, inputs: Tensors) -> Tensors:
        time.sleep(inputs["sleep"].item() if "sleep" in inputs else 0)
        return inputs


class FailsToLoad:
    """Cannot be loaded."""

    def load(self) -> None:
        raise FileNotFoundError("no such weights")

    def predict(self, inputs: Tensors) -> Tensors:
        return inputs


class Span:
    """Computes for 5 ms and tells from when to when, in seconds of the machine's monotonic clock."""

    def load(self) -> None:
        pass

    def predict(self, _inputs: Tensors) -> Tensors:
        began = ended = time.monotonic()
        while ended < began + 0.005:
            ended = time.monotonic()
        return {"began": np.array(began), "ended": np.array(ended)}
