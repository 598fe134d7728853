"""Models without TensorFlow. They have the interface of ``percore.handlers``, so the API can call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from flask.testing import FlaskClient
from percore.api.app import create_app
from percore.errors import BadInput
from percore.handlers import Array, Tensors
from percore.model_metadata import CLASSIFY, DEFAULT_SIGNATURE, REGRESS, Catalog, ModelInfo, Signature, TensorSpec

Predict = Callable[[Tensors], Tensors]


def spec(name: str, dtype: str = "float32", *shape: int | None) -> TensorSpec:
    """Return a spec of a known rank."""
    return TensorSpec(name, dtype, shape)


def echo(inputs: Tensors) -> Tensors:
    """Return the inputs as the outputs."""
    return inputs


class FakeModel:
    """A model whose ``predict`` is a given function. It remembers its calls."""

    def __init__(self, info: ModelInfo, predict: Predict = echo) -> None:
        self.info = info
        self.calls: list[tuple[str, Tensors]] = []
        self._predict = predict

    def predict(self, signature: str, inputs: Tensors) -> Tensors:
        self.calls.append((signature, inputs))
        return self._predict(inputs)

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:
        """Serialise features as JSON, which a test reads back; bytes become lists of numbers."""
        if any("refused" in example for example in examples):
            raise BadInput("feature 'refused': expected anything else")
        encoded = np.empty(len(examples), object)
        encoded[:] = [orjson.dumps(dict(example), default=list) for example in examples]
        return encoded


def model(
    inputs: Sequence[TensorSpec],
    predict: Predict = echo,
    outputs: Sequence[TensorSpec] | None = None,
    *,
    name: str = "m",
    version: int = 1,
    labels: tuple[str, ...] = (),
) -> FakeModel:
    """Return a model with one signature, whose outputs are like its inputs unless they are given."""
    signature = Signature(tuple(inputs), tuple(inputs if outputs is None else outputs))
    return FakeModel(ModelInfo(name, version, "tensorflow_savedmodel", {DEFAULT_SIGNATURE: signature}, labels), predict)


def handler(predict: Predict = echo, name: str = "handler") -> FakeModel:
    """Return a model like the adapter of a user's handler that declares no signature."""
    return FakeModel(ModelInfo(name, 1, "percore_handler", {}), predict)


def example_model() -> FakeModel:
    """Return a model with a signature for each of TensorFlow Serving's methods."""
    examples = (TensorSpec("examples", "bytes", (None,)),)
    scores = (TensorSpec("scores", "float32", (None, 2)), TensorSpec("classes", "bytes", (None, 2)))
    signatures = {
        DEFAULT_SIGNATURE: Signature(examples, scores, CLASSIFY),
        "regression": Signature(examples, (TensorSpec("outputs", "float32", (None, 1)),), REGRESS),
        "plain": Signature((TensorSpec("x", "float32", (None,)),), (TensorSpec("x", "float32", (None,)),)),
    }
    return FakeModel(ModelInfo("examples", 1, "tensorflow_savedmodel", signatures), _score)


def _score(inputs: Tensors) -> Tensors:
    if "x" in inputs:
        return inputs
    size = len(inputs["examples"])
    scores = np.tile(np.array([0.25, 0.75], np.float32), (size, 1))
    classes = np.tile(np.array([b"no", b"yes"], object), (size, 1))
    return {"scores": scores, "classes": classes, "outputs": np.arange(size, dtype=np.float32).reshape(size, 1)}


def catalog_of(*models: FakeModel) -> Catalog:
    """Return the catalog of models."""
    return Catalog(tuple(each.info for each in models))


def client_of(*models: FakeModel, max_body_bytes: int = 2**24) -> FlaskClient:
    """Return a client of an application that serves models."""
    return create_app(models, catalog_of(*models), max_body_bytes=max_body_bytes).test_client()
