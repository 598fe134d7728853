"""The entry to TensorFlow: sets the variables that TensorFlow reads at its import, and loads models of every kind.

Imported by the arbiter before it forks, or by ``percore.model_store`` in a worker. The import must run no operation and start
no thread. ``savedmodel`` and ``kerasmodel`` read files; ``runners`` has the models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path

# Both are read while the modules below are imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf

from percore.errors import LoadError
from percore.handlers import files, kerasmodel, savedmodel
from percore.handlers.runners import Reader, TensorFlowModel
from percore.model_metadata import ModelInfo

__all__ = ["TensorFlowModel", "configure", "load"]

SERVING = ("serve",)
"""Tags of the graph to serve, if a SavedModel has several. The same as ``tf.saved_model.SERVING``."""


def configure(threads: int) -> None:
    """Let one call compute on ``threads`` cores; raise LoadError if TensorFlow has already started with another number."""
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise LoadError(f"TensorFlow cannot be set to {threads} threads: it computed in this process before") from error


def load(info: ModelInfo, folder: Path, tags: Collection[str] = SERVING, *, allow_code: bool = False) -> TensorFlowModel:
    """Load one version of a model; ``info`` has no signatures yet. Raises LoadError.

    ``tags`` choose one of several graphs of a SavedModel. ``allow_code``: Keras files may hold Python functions.
    """
    readers: dict[str, Reader] = {
        files.SAVED_MODEL: partial(savedmodel.read, tags=tags),
        files.KERAS: partial(kerasmodel.read, allow_code=allow_code),
    }
    return TensorFlowModel(info, folder, readers[info.platform])
