"""TensorFlow Serving's REST, ``:predict``: the row form and the column form.

Source: https://www.tensorflow.org/tfx/serving/api_rest and the server's ``json_tensor.cc``. As in that server, unknown keys at
the top of a request are ignored, and bytes are ``{"b64": "..."}``.

The concept of signatures comes from TensorFlow Serving. So this module chooses the signature for all verbs, and for the Open
Inference Protocol too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

from percore.api.error_format import describe, kind, names, shape_text, shorten
from percore.api.flask_app import Answer
from percore.api.tensors import decode, dumps, infer_array, is_base64, rows, to_json
from percore.errors import BadInput, HandlerFailed
from percore.handlers import Array, Model, Tensors
from percore.model_metadata import DEFAULT_SIGNATURE, ModelInfo, Signature

DEFAULT_INPUT = "inputs"
"""The name that an input gets if the request gives it none and the handler declares no signature."""


def predict(model: Model, document: Any) -> Answer:
    """Answer ``:predict``: JSON with ``predictions`` for the row form, ``outputs`` for the column form."""
    request = as_object(document)
    name = signature_name(request)
    signature = choose_signature(model.info, name)
    in_rows = "instances" in request
    tensors = _read(request, signature)
    request.clear()  # frees the JSON before the run: it takes many times the memory of its tensors
    outputs = run(model, name, tensors)
    return Answer([_rows_answer(outputs) if in_rows else _columns_answer(outputs)])


def run(model: Model, signature: str, inputs: Tensors) -> Tensors:
    """Run a model for a caller. A BadInput goes to the caller; every other error becomes the cause of a HandlerFailed.

    So user code cannot answer with a status that means "this call did not run", after which the caller would send it again.
    """
    try:
        return model.predict(signature, inputs)
    except BadInput as error:
        raise BadInput(str(error)) from error  # a new one, because a user's subclass may have another status and code
    except Exception as error:
        raise HandlerFailed from error


def as_object(document: Any) -> dict[str, Any]:
    """Return the request, which must be an object; raise BadInput otherwise."""
    if type(document) is not dict:
        raise BadInput(f"body: expected an object, got {describe(document)}")
    return document


def signature_name(document: dict[str, Any], field: str = "signature_name") -> str:
    """Return the signature that a request names, or the default one."""
    name = document.get("signature_name", DEFAULT_SIGNATURE)
    if type(name) is not str:
        raise BadInput(f"{field}: expected a string, got {describe(name)}")
    return name or DEFAULT_SIGNATURE


def choose_signature(info: ModelInfo, name: str) -> Signature | None:
    """Return a model's signature by name; None if the model declares no signatures."""
    if not info.signatures:
        return None
    if name not in info.signatures:
        known = names(info.signatures)
        raise BadInput(f"signature_name: model {info.name!r} has no signature {shorten(name)}; known: {known}")
    return info.signatures[name]


def check_names(expected: Iterable[str], given: Iterable[str], field: str) -> None:
    """Raise BadInput if the given inputs are not exactly the expected ones."""
    expected, given = set(expected), set(given)
    if expected != given:
        missing, unknown = names(expected - given), names(given - expected)
        raise BadInput(f"{field}: expected the inputs {names(expected)}; missing: {missing}; unknown: {unknown}")


def _read(request: Mapping[str, Any], signature: Signature | None) -> dict[str, Array]:
    if ("instances" in request) == ("inputs" in request):
        found = "both" if "inputs" in request else "neither"
        raise BadInput(f"body: expected either 'instances' (row form) or 'inputs' (column form), got {found}")
    if "inputs" in request:
        return _tensors(_columns(request["inputs"], signature), signature)
    columns = _rows_to_columns(request["instances"], signature)
    _refuse_unbatched(signature)
    return _tensors(columns, signature)


def _tensors(columns: Mapping[str, Any], signature: Signature | None) -> dict[str, Array]:
    if signature is None:
        return {name: infer_array(value, f"input {name!r}") for name, value in columns.items()}
    return {spec.name: decode(columns[spec.name], spec, f"input {spec.name!r}") for spec in signature.inputs}


def _is_named(value: Any) -> bool:
    return type(value) is dict and not is_base64(value)


def _only_input(signature: Signature | None, value: Any, field: str) -> str:
    """Return the name of the only input, for a value that the request gives without a name."""
    if signature is None:
        return DEFAULT_INPUT
    if len(signature.inputs) == 1:
        return signature.inputs[0].name
    expected = names(spec.name for spec in signature.inputs)
    raise BadInput(f"{field}: expected an object with the inputs {expected}, got {describe(value)}")


def _columns(value: Any, signature: Signature | None) -> Mapping[str, Any]:
    if not _is_named(value):
        return {_only_input(signature, value, "inputs"): value}
    if signature is not None:
        check_names((spec.name for spec in signature.inputs), value, "inputs")
    columns: dict[str, Any] = value
    return columns


def _rows_to_columns(instances: Any, signature: Signature | None) -> Mapping[str, Any]:
    if type(instances) is not list:
        raise BadInput(f"instances: expected a list, got {describe(instances)}")
    if not instances:
        raise BadInput("instances: expected at least one, got an empty list")
    if dict not in set(map(type, instances)) or not _all_named(instances):
        return {_only_input(signature, instances[0], "instances[0]"): instances}
    expected = instances[0].keys() if signature is None else {spec.name for spec in signature.inputs}
    for index, instance in enumerate(instances):
        if instance.keys() != expected:
            check_names(expected, instance, f"instances[{index}]")
    return {name: list(map(itemgetter(name), instances)) for name in expected}


def _all_named(instances: list[Any]) -> bool:
    """Return whether the instances are objects with input names as keys; raise BadInput if only some are."""
    named = list(map(_is_named, instances))
    if any(named) and not all(named):
        index = named.index(not named[0])
        first, other = kind(instances[0]), kind(instances[index])
        raise BadInput(
            f"instances: expected only objects with input names as keys, or only plain values; instance 0 is of kind {first}, "
            f"instance {index} {other}"
        )
    return named[0]


def _refuse_unbatched(signature: Signature | None) -> None:
    """Raise BadInput before the call computes, if the row form cannot hold the outputs."""
    for spec in signature.outputs if signature else ():
        if spec.shape == ():
            raise _unbatched(spec.name, ())


def _unbatched(name: str, shape: tuple[int, ...]) -> BadInput:
    return BadInput(
        f"instances: expected outputs with one batch dimension, as the row form needs, got {name!r} of shape "
        f"{shape_text(shape)}; use 'inputs'"
    )


def _columns_answer(outputs: Tensors) -> bytes:
    columns = {name: to_json(array, name) for name, array in outputs.items()}
    return dumps({"outputs": next(iter(columns.values())) if len(columns) == 1 else columns})


def _rows_answer(outputs: Tensors) -> bytes:
    size = next(iter(outputs.values())).shape[:1] if outputs else ()
    for name, array in outputs.items():
        if not array.ndim or array.shape[:1] != size:
            raise _unbatched(name, array.shape)
    if len(outputs) == 1:
        return dumps({"predictions": next(to_json(array, name) for name, array in outputs.items())})
    columns = [rows(array, name) for name, array in outputs.items()]
    return dumps({"predictions": [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]})
