"""Handlers that real pods load in the tests of the gateway."""

import os
import time

import numpy as np
from percore.handlers import Tensors


class Span:
    """Computes for ``seconds``. Returns the process, and begin and end by the machine's monotonic clock."""

    def load(self) -> None:
        self.port = np.array(int(os.environ["PERCORE_PORT"]))

    def predict(self, inputs: Tensors) -> Tensors:
        began = time.monotonic()
        time.sleep(float(inputs["seconds"]))
        return {"began": np.array(began), "ended": np.array(time.monotonic()), "port": self.port}
