"""TensorFlow models: the code that all kinds share.

Imported by the arbiter before it forks, or by ``percore.model_store`` in a worker. The import must run no operation and start
no thread. ``savedmodel`` and ``kerasmodel`` load. percore never calls Keras's ``Model.predict``: it takes 35 ms for
each call, and it fails ("Model.predict in graph mode is not supported ...") if a model is loaded in one thread and called in
another. A concrete function does not depend on the thread, nor does a session with its own graph.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Both are read while the modules below are imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry  # nothing public tells which operations are stateful

from percore.errors import BadInput, LoadError
from percore.handlers import Array, Tensors, effects, files, kerasmodel, savedmodel, warmup
from percore.handlers.runners import SignatureRunner, reason
from percore.handlers.tf_example import Feature, features
from percore.model_metadata import PREDICT, ModelInfo

logger = logging.getLogger(__name__)

CALLERS_FAULT = (tf.errors.InvalidArgumentError, tf.errors.DataLossError)
"""TensorFlow raises these for tensors that do not fit, and for bytes that are not an image or not compressed data. Every other
error is the model's fault."""
MODELS_FAULT = re.compile(
    r"No OpKernel was registered|only supports .* on device type|Cannot assign a device|Could not satisfy .*device|"
    r"You must feed a value for placeholder"
)
"""Messages of InvalidArgumentError that do not depend on the input: this machine cannot run the graph."""
CHANGES = (
    "%s: signature %r may change the model or the machine (%s). It is not warmed up, unless warmup.json names it. "
    "What it changes in the model stays in one worker, and is lost with it"
)


def configure(threads: int) -> None:
    """Let one call compute on ``threads`` cores; raise LoadError if TensorFlow runs with another number already."""
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise LoadError(f"TensorFlow cannot be set to {threads} threads: it computed in this process before") from error


Reader = Callable[[Path, str], dict[str, SignatureRunner]]
"""Takes the folder of a version, and the model's name for the log; returns the runner of each signature, by name."""


class TensorFlowModel:
    """Implements ``percore.handlers.Model`` for all kinds of TensorFlow models.

    The constructor loads and warms up, in the thread that will call the model. It raises LoadError, which names the model, the
    path and the reason.
    """

    def __init__(self, info: ModelInfo, folder: Path, read: Reader) -> None:
        began = time.perf_counter()
        self._title = f"model {info.name!r} version {info.version} in {folder}"
        try:
            callables = read(folder, self._title)
        except Exception as error:
            raise LoadError(f"{self._title} cannot be loaded: {reason(error)}") from error
        self._callables = {name: each for name, each in callables.items() if self._is_fit(name, each)}
        if not self._callables:
            raise LoadError(f"{self._title} has no signature that can be served; it has {', '.join(callables) or 'none'}")
        self.info = replace(info, signatures={name: each.signature for name, each in self._callables.items()})
        self._warm_up(folder / warmup.FILE)
        self.info = replace(self.info, load_seconds=round(time.perf_counter() - began, 3))

    def predict(self, signature: str, inputs: Tensors) -> Tensors:
        """Run one signature; raise BadInput if TensorFlow rejects its inputs, at any operation of the graph."""
        try:
            return self._callables[signature](inputs)
        except CALLERS_FAULT as error:
            if not self._is_callers_fault(error, signature):
                raise
            raise BadInput(f"the model refused the input: {reason(error)}") from error

    def _is_callers_fault(self, error: Exception, signature: str) -> bool:
        if isinstance(error, tf.errors.DataLossError):  # without bytes in the input, it is a damaged file of the model
            return any(spec.dtype == "bytes" for spec in self.info.signatures[signature].inputs)
        return not MODELS_FAULT.search(str(error))

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as ``tf.Example``, shape (len(examples),); raise BadInput naming ``examples[i].feature``."""
        serialised = np.empty(len(examples), object)
        for index, example in enumerate(features(examples)):
            serialised[index] = _example(example).SerializeToString()
        return serialised

    def _is_fit(self, name: str, of: SignatureRunner) -> bool:
        why = of.why_not_served()
        if why:
            logger.warning("%s: signature %r is left out: %s", self._title, name, why)
        return why is None

    def _warm_up(self, path: Path) -> None:
        """Run the calls of ``warmup.json``, which must succeed. Without this file, call with zeros, which may fail."""
        if not path.exists():
            return self._try_zeros()
        try:
            for name, inputs in warmup.read(path, self.info.signatures):
                self.predict(name, inputs)
        except Exception as error:
            raise LoadError(f"{self._title} fails its warm-up, {path.name}: {reason(error)}") from error

    def _try_zeros(self) -> None:
        for name, signature in self.info.signatures.items():
            changing = effects.changing(self._callables[name].operations, op_def_registry.get)
            if changing:
                logger.warning(CHANGES, self._title, name, ", ".join(changing))
            if changing or signature.method != PREDICT:
                continue
            logger.debug("%s: warming up signature %r with zeros", self._title, name)
            try:
                self.predict(name, warmup.zeros(signature))
            except Exception as error:  # noqa: BLE001 (zeros may mean nothing to a model: its first caller warms it up)
                logger.warning("%s: no warm-up of signature %r, zeros fail: %s", self._title, name, reason(error))


SERVING = ("serve",)
"""Tags of the graph to serve, if a SavedModel has several. The same as ``tf.saved_model.SERVING``."""


def load(info: ModelInfo, folder: Path, tags: Collection[str] = SERVING, *, allow_code: bool = False) -> TensorFlowModel:
    """Load one version of a model; ``info`` has no signatures yet. Raises LoadError.

    ``tags`` choose one of several graphs of a SavedModel. ``allow_code`` lets a Keras file bring Python functions.
    """
    readers: dict[str, Reader] = {
        files.SAVED_MODEL: partial(savedmodel.read, tags=tags),
        files.KERAS: partial(kerasmodel.read, allow_code=allow_code),
    }
    return TensorFlowModel(info, folder, readers[info.platform])


def _example(example: Mapping[str, Feature]) -> Any:
    message = tf.train.Example()
    for name, feature in example.items():
        entry = message.features.feature[name]
        if feature is not None:
            kind, values = feature
            getattr(entry, kind).value.extend(values)
    return message
