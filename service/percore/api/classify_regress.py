"""TensorFlow Serving's REST, ``:classify`` and ``:regress``: the request has a list of examples, and each example has features.

Source: https://www.tensorflow.org/tfx/serving/api_rest#classify_and_regress_api.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from percore.api.error_format import describe, names, shape_text
from percore.api.flask_app import Answer
from percore.api.tensors import dumps, from_base64, rows
from percore.api.tfserving import as_object, choose_signature, run, signature_name
from percore.errors import BadInput, BodyTooLarge
from percore.handlers import Array, Model, Tensors
from percore.model_metadata import CLASSIFY, REGRESS

RESULTS = "results"

Features = Mapping[str, Any]


def classify(model: Model, document: Any, max_body_bytes: int) -> Answer:
    """Answer ``:classify``: for each example a list of ``[label, score]``."""
    examples, outputs = _run(model, document, CLASSIFY, max_body_bytes)
    scores, classes = outputs.get("scores"), outputs.get("classes")
    known = [array for array in (scores, classes) if array is not None]
    shapes = {array.shape for array in known}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != examples for shape in shapes):
        raise _wrong_outputs("classify", "'scores' and 'classes' of one shape [examples, classes]", outputs)
    width = known[0].shape[1]
    labels = [""] * known[0].size if classes is None else rows(classes.reshape(-1), "")
    points: list[Any] = [0.0] * known[0].size if scores is None else rows(scores.reshape(-1), "scores")
    pairs = list(zip(labels, points, strict=True))
    return Answer([dumps({RESULTS: [pairs[index * width : (index + 1) * width] for index in range(examples)]})])


def regress(model: Model, document: Any, max_body_bytes: int) -> Answer:
    """Answer ``:regress``: one number for each example."""
    examples, outputs = _run(model, document, REGRESS, max_body_bytes)
    values = outputs.get("outputs", next(iter(outputs.values()), np.empty(0)))
    if values.size != examples or values.shape[:1] != (examples,):
        raise _wrong_outputs("regress", "'outputs' of shape [examples] or [examples, 1]", outputs)
    return Answer([dumps({RESULTS: rows(values.reshape(-1), "outputs")})])


def _run(model: Model, document: Any, method: str, max_body_bytes: int) -> tuple[int, Tensors]:
    """Return how many examples there are, and the model's outputs for them."""
    request = as_object(document)
    name = signature_name(request)
    signature = choose_signature(model.info, name)
    declared = "none" if signature is None else signature.method
    if signature is None or declared != method:
        raise BadInput(f"signature_name: signature {name!r} has the method {declared!r}, expected {method!r}; use :predict")
    if len(signature.inputs) != 1 or signature.inputs[0].dtype != "bytes":
        inputs = names(spec.name for spec in signature.inputs)
        raise BadInput(f"signature_name: signature {name!r} takes {inputs} rather than one input of tf.Example; use :predict")
    examples = _examples(request, max_body_bytes)
    serialised: Array = model.encode_examples(examples)
    count = len(examples)
    del examples
    request.clear()  # frees the JSON before the run: it takes many times the memory of its tensors
    return count, run(model, name, {signature.inputs[0].name: serialised})


def _examples(request: Mapping[str, Any], max_body_bytes: int) -> Sequence[Features]:
    """Return the examples with the context's features in each."""
    examples = request.get("examples")
    if type(examples) is not list or not examples:
        raise BadInput(f"examples: expected a list of at least one object, got {describe(examples)}")
    context = _features(request.get("context", {}), "context")
    _limit_context(request.get("context", {}), len(examples), max_body_bytes)
    read = [_features(example, f"examples[{index}]") for index, example in enumerate(examples)]
    for index, example in enumerate(read):
        if not context.keys().isdisjoint(example):
            twice = names(context.keys() & example.keys())
            raise BadInput(f"examples[{index}]: expected no feature that 'context' has too, got {twice}")
    return [{**context, **example} for example in read]


def _limit_context(context: Any, examples: int, limit: int) -> None:
    """Raise BodyTooLarge if all copies of the context (one for each example) are larger than a body may be."""
    size = len(str(context)) * examples
    if context and size > limit:
        raise BodyTooLarge(f"context: its copies in {examples} examples take about {size} bytes, over the limit of {limit}")


def _features(features: Any, field: str) -> dict[str, Any]:
    if type(features) is not dict:
        raise BadInput(f"{field}: expected an object of features, got {describe(features)}")
    return {name: _feature(value, f"{field}: feature {name!r}") for name, value in features.items()}


def _feature(value: Any, field: str) -> Any:
    """Return a feature with strings as bytes. The model checks later that the values of a list are of one kind."""
    values = value if type(value) is list else [value]
    kinds = set(map(type, values))
    if not kinds <= {bool, int, float, str, dict}:
        wrong = next(each for each in values if type(each) not in (bool, int, float, str, dict))
        raise BadInput(f"{field}: expected a number, a boolean, a string or a list of these, got {describe(wrong)}")
    if int in kinds and not all(-(2**63) <= each < 2**63 for each in values if type(each) is int):
        raise BadInput(f"{field}: expected signed 64-bit integers, got {describe(value)}")
    if kinds & {str, dict}:
        values = [each.encode() if type(each) is str else _bytes(each, field) for each in values]
    return values if type(value) is list else values[0]


def _bytes(value: Any, field: str) -> Any:
    return from_base64(value, field) if type(value) is dict else value


def _wrong_outputs(method: str, expected: str, outputs: Tensors) -> TypeError:
    found = ", ".join(f"{name!r} of {shape_text(array.shape)}" for name, array in outputs.items())
    return TypeError(f"{method}: expected the model's outputs {expected}, got {found or 'none'}")
