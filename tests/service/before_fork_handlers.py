"""A module for the import before the fork.

It logs the process that imports it. Its handlers return the state of a forked worker.
"""

import logging
import os
import random
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
import tensorflow as tf
from percore.handlers import Tensors
from threadpoolctl import threadpool_info

logging.getLogger("tests").warning("this process imports the module")


class Numbers:
    """Answers with one random number of each library."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        numbers = [random.random(), np.random.random(), float(tf.random.uniform([])), float(keras.random.uniform([]))]
        return {"numbers": np.array(numbers, np.float64)}


class Threads:
    """Answers with the number of threads of each BLAS and OpenMP library, and with the cores of this process."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        matrix = np.ones((600, 600))
        matrix @ matrix  # BLAS starts its threads at the first product
        return {
            "libraries": np.array([library["num_threads"] for library in threadpool_info()]),
            "cores": np.array(len(os.sched_getaffinity(0))),
        }


class TensorFlowThreads:
    """Answers with the number of threads in TensorFlow's intra-op pool."""

    def load(self) -> None:
        pass

    def predict(self, inputs: Tensors) -> Tensors:
        for _ in range(20):
            tf.linalg.matmul(tf.ones((500, 500)), tf.ones((500, 500)))
        names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        return {"threads": np.array(sum(name.startswith("tf_Compute") for name in names))}
