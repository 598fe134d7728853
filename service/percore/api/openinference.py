"""The Open Inference Protocol, version 2, REST: ``infer``.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol. One extension of our own: the
request's ``parameters.signature_name`` chooses a signature other than the default. The protocol has no JSON form for bytes that
are not UTF-8. percore writes them as ``{"b64": "..."}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from percore.api import binary
from percore.api.error_format import describe, names, shape_text, shorten
from percore.api.flask_app import Answer, Chunk
from percore.api.jsoncodec import Body, loads
from percore.api.tensors import MAX_DIMENSIONS, NUMPY_DTYPES, check_shape, dtype_name, dumps, flatten, from_values, to_json
from percore.api.tfserving import check_names, choose_signature, run, signature_name
from percore.dtypes import BY_NAME, BY_OPENINFERENCE
from percore.errors import BadInput
from percore.handlers import Array, Model, Tensors
from percore.model_metadata import Signature

BINARY = "application/octet-stream"


def infer(model: Model, body: Body, header: str | None) -> Answer:
    """Answer ``infer``. ``header`` is the request's ``Inference-Header-Content-Length``, if it has one."""
    text, data = binary.split(body, header)
    request = _object(loads(text), "body")
    if "id" in request:
        _string(request["id"], "id")
    parameters = _object(request.get("parameters", {}), "parameters")
    name = signature_name(parameters, "parameters.signature_name")
    signature = choose_signature(model.info, name)
    requested = _requested_outputs(request.get("outputs", []), signature)
    all_binary = _flag(parameters, "binary_data_output", False)
    inputs = _inputs(_list(request.get("inputs"), "inputs"), binary.Reader(data), signature)
    del request["inputs"]  # frees the JSON before the run: it takes many times the memory of its tensors
    outputs = _select_outputs(run(model, name, inputs), requested)
    raw = {name for name in outputs if requested.get(name, {}).get("binary_data", all_binary)}
    return _answer(model, request, outputs, raw)


def _object(value: Any, field: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise BadInput(f"{field}: expected an object, got {describe(value)}")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if type(value) is not list:
        raise BadInput(f"{field}: expected a list, got {describe(value)}")
    return value


def _string(value: Any, field: str) -> str:
    if type(value) is not str:
        raise BadInput(f"{field}: expected a string, got {describe(value)}")
    return value


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise BadInput(f"parameters.{name}: expected a boolean, got {describe(value)}")
    return value


def _inputs(entries: list[Any], reader: binary.Reader, signature: Signature | None) -> dict[str, Array]:
    """Return the tensors of a request. If there is a signature, they are exactly its inputs."""
    named: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        name = _string(_object(entry, f"inputs[{index}]").get("name"), f"inputs[{index}].name")
        if name in named:
            raise BadInput(f"inputs[{index}].name: expected each input once, got {shorten(name)} again")
        named[name] = entry
    if signature is not None:
        check_names((spec.name for spec in signature.inputs), named, "inputs")
    arrays = {name: _tensor(entry, reader, signature, f"input {shorten(name)}") for name, entry in named.items()}
    reader.finish()
    return arrays


def _tensor(entry: Mapping[str, Any], reader: binary.Reader, signature: Signature | None, field: str) -> Array:
    dtype = _dtype(entry.get("datatype"), field)
    shape = _shape(entry.get("shape"), dtype, field)
    for spec in signature.inputs if signature else ():
        if spec.name == entry["name"]:
            if spec.dtype != dtype:
                expected = BY_NAME[spec.dtype].openinference
                raise BadInput(f"{field}: expected the datatype {expected}, got {entry['datatype']}")
            shape = check_shape(shape, spec, field)
    parameters = _object(entry.get("parameters", {}), f"{field}: parameters")
    size = parameters.get("binary_data_size")
    if ("data" in entry) == (size is not None):
        found = "both" if "data" in entry else "neither"
        raise BadInput(f"{field}: expected either 'data' or the parameter 'binary_data_size', got {found}")
    if size is not None:
        return binary.to_array(reader.take(size, field), dtype, shape, field)
    return _from_json(entry["data"], dtype, shape, field)


def _dtype(datatype: Any, field: str) -> str:
    known = BY_OPENINFERENCE.get(datatype) if type(datatype) is str else None
    if known is None:
        raise BadInput(f"{field}: datatype: expected one of {', '.join(BY_OPENINFERENCE)}, got {describe(datatype)}")
    return known.name


def _shape(shape: Any, dtype: str, field: str) -> tuple[int, ...]:
    """Return the shape; raise BadInput if numpy cannot have it: a size below 0, or more bytes than a machine can address."""
    if type(shape) is not list or len(shape) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        rule = f"a list of at most {MAX_DIMENSIONS} whole numbers from 0 up"
        raise BadInput(f"{field}: shape: expected {rule}, got {describe(shape)}")
    if math.prod(size or 1 for size in shape) * NUMPY_DTYPES[dtype].itemsize >= 2**63:
        raise BadInput(f"{field}: shape: expected fewer than 2**63 bytes, got {shorten(shape)}")
    return tuple(shape)


def _from_json(data: Any, dtype: str, shape: tuple[int, ...], field: str) -> Array:
    """Return a tensor from JSON: flat in row-major order, or nested as the shape says."""
    values = flatten(data, f"{field}: data")
    nested = values.shape
    whole = (*nested, *shape[len(nested) :]) if 0 in nested else nested
    if whole != shape and nested != (math.prod(shape),):
        raise BadInput(
            f"{field}: data: expected {math.prod(shape)} values, flat or nested as the shape {shape_text(shape)}, "
            f"got lists of shape {shape_text(nested)}"
        )
    return from_values(values, dtype, f"{field}: data").reshape(shape)


def _requested_outputs(entries: Any, signature: Signature | None) -> dict[str, dict[str, Any]]:
    """Return the parameters of each output that a request names.

    If it names none, the result is empty and means all outputs.
    """
    requested: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(_list(entries, "outputs")):
        name = _string(_object(entry, f"outputs[{index}]").get("name"), f"outputs[{index}].name")
        requested[name] = _object(entry.get("parameters", {}), f"outputs[{index}].parameters")
        _flag(requested[name], "binary_data", False)  # checked here, so that a mistake is found before the call computes
    if signature is not None:
        _check_outputs(requested, [spec.name for spec in signature.outputs])
    return requested


def _check_outputs(requested: Mapping[str, Any], known: list[str]) -> None:
    unknown = [name for name in requested if name not in known]
    if unknown:
        raise BadInput(f"outputs: expected some of {names(known)}, got {names(unknown)}")


def _select_outputs(outputs: Tensors, requested: Mapping[str, Any]) -> Tensors:
    if not requested:
        return outputs
    _check_outputs(requested, list(outputs))
    return {name: outputs[name] for name in requested}


def _answer(model: Model, request: Mapping[str, Any], outputs: Tensors, raw: set[str]) -> Answer:
    chunks = {name: binary.to_chunk(array) for name, array in outputs.items() if name in raw}
    document = {"model_name": model.info.name, "model_version": str(model.info.version)}
    if "id" in request:
        document["id"] = request["id"]
    listed = [_output(name, array, chunks.get(name)) for name, array in outputs.items()]
    text = dumps({**document, "outputs": listed})
    if not chunks:
        return Answer([text])
    return Answer([text, *chunks.values()], 200, BINARY, **{binary.HEADER: str(len(text))})


def _output(name: str, array: Array, chunk: Chunk | None) -> dict[str, Any]:
    head = {"name": name, "datatype": BY_NAME[dtype_name(array)].openinference, "shape": list(array.shape)}
    if chunk is None:
        return {**head, "data": to_json(array.reshape(-1), "")}
    return {**head, "parameters": {"binary_data_size": len(chunk)}}
