"""Models and handlers: the interface between the API and every kind of model.

A *handler* is a class that a user writes. A *model* is an object that the API calls: a loaded TensorFlow model, or a handler in
an adapter. Both are loaded and called in the worker's main thread, and in no other thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from percore.model_metadata import ModelInfo

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
"""Tensors by name. Strings are object arrays of ``bytes``. A handler may change its inputs in place."""


class Handler(Protocol):
    """A user's own code, named by ``PERCORE_HANDLER=module:Class``.

    It may also declare ``signature``, a ``percore.model_metadata.Signature``: then inputs are checked and converted to it
    before ``predict`` is called, and described in the metadata. Without a signature every input is accepted, with the type
    of its JSON values. An input without a name in the request is named ``inputs``.
    """

    def load(self) -> None:
        """Prepare for ``predict``; called once."""

    def predict(self, inputs: Tensors) -> Tensors:
        """Answer one call. Raise ``percore.errors.BadInput`` to answer 400. Every other exception is answered 500."""


class Model(Protocol):
    """One loaded version of a model."""

    @property
    def info(self) -> ModelInfo:
        """Its metadata, for the read-only routes."""

    def predict(self, signature: str, inputs: Tensors) -> Tensors:
        """Run one signature.

        ``inputs`` have been checked: they have the names, dtypes and shapes of the signature. Every array is C-contiguous. It
        may be read-only (a view of the request's bytes). Raises BadInput if the model itself rejects the values. Any other
        exception is a failure of the model.
        """

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as ``tf.Example``, shape (len(examples),), for classify and regress.

        Each feature is a scalar or a list of ints, floats, booleans or bytes. Raises BadInput naming the feature.
        """


__all__ = ["Array", "Handler", "Model", "Tensors"]
