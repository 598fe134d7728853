"""The schemas of the OpenAPI document that do not depend on the served models.

Tensors are described as any JSON. A model's metadata says their types and shapes, and each call is checked against it.
Read by ``openapi`` alone.
"""

from __future__ import annotations

from typing import Any

from percore.dtypes import DTYPES

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_ANY: Json = {}
_DATATYPE: Json = {"type": "string", "enum": [dtype.openinference for dtype in DTYPES]}


def _object(required: list[str], **properties: Any) -> Json:
    return {"type": "object", "properties": properties, "required": required}


def _list(items: Json, **rules: Any) -> Json:
    return {"type": "array", "items": items, **rules}


def _flag(name: str) -> Json:
    return _object([name], **{name: {"type": "boolean", "const": True}})


def _map(values: Json) -> Json:
    return {"type": "object", "additionalProperties": values}


_SIGNATURE_NAME: Json = {**_STRING, "description": "The signature to run; `serving_default` where it is absent."}
_VALUE: Json = {"description": 'A number, a boolean, a string, {"b64": "..."} for bytes, or nested lists of one of them.'}
_NAMED_VALUES: Json = {"description": "A value for a signature with one input, or an object of values by input name."}
_FEATURES: Json = _map({"description": "A number, a boolean, a string, bytes as {b64: ...}, or a list of one of them."})
_SHAPE: Json = _list({"type": "integer", "minimum": 0}, maxItems=64)
_PARAMETERS: Json = {"type": "object"}

_PREDICT_REQUEST: Json = {
    "type": "object",
    "properties": {
        "signature_name": _SIGNATURE_NAME,
        "instances": _list(_NAMED_VALUES, minItems=1, description="The row form: one entry for each instance of the batch."),
        "inputs": {**_NAMED_VALUES, "description": "The column form: whole tensors."},
    },
    "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
}
_PREDICTIONS: Json = {
    "oneOf": [_object(["predictions"], predictions=_list(_ANY)), _object(["outputs"], outputs=_ANY)],
    "description": "`predictions` for the row form, `outputs` for the column form. NaN and infinities are bare tokens.",
}
_TENSOR_INFO: Json = _object(
    ["dtype", "tensor_shape", "name"],
    dtype={"type": "string", "enum": [dtype.tensorflow for dtype in DTYPES]},
    tensor_shape=_object(
        ["dim", "unknown_rank"],
        dim=_list(_object(["size", "name"], size=_STRING, name=_STRING)),
        unknown_rank={"type": "boolean"},
    ),
    name=_STRING,
)
_SIGNATURE: Json = _object(
    ["inputs", "outputs", "method_name"], inputs=_map(_TENSOR_INFO), outputs=_map(_TENSOR_INFO), method_name=_STRING
)
_INPUT: Json = {
    **_object(
        ["name", "datatype", "shape"],
        name=_STRING,
        datatype=_DATATYPE,
        shape=_SHAPE,
        data={**_VALUE, "description": "Values, flat in row-major order, or nested as the shape says."},
        parameters={"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}},
    ),
    "oneOf": [
        {"required": ["data"]},
        {"required": ["parameters"], "properties": {"parameters": {"required": ["binary_data_size"]}}},
    ],
}
_REQUESTED_OUTPUT: Json = _object(
    ["name"], name=_STRING, parameters={"type": "object", "properties": {"binary_data": {"type": "boolean"}}}
)
_OUTPUT: Json = _object(
    ["name", "datatype", "shape"], name=_STRING, datatype=_DATATYPE, shape=_SHAPE, data=_list(_ANY), parameters=_PARAMETERS
)
_TENSOR_METADATA: Json = _object(
    ["name", "datatype", "shape"], name=_STRING, datatype=_DATATYPE, shape=_list({"type": "integer", "minimum": -1})
)

SCHEMAS: Json = {
    "PredictRequest": _PREDICT_REQUEST,
    "Predictions": _PREDICTIONS,
    "ExamplesRequest": _object(
        ["examples"], signature_name=_SIGNATURE_NAME, context=_FEATURES, examples=_list(_FEATURES, minItems=1)
    ),
    "Classifications": _object(["results"], results=_list(_list({"type": "array", "minItems": 2, "maxItems": 2}))),
    "Regressions": _object(["results"], results=_list({"type": "number"})),
    "ModelStatus": _object(
        ["model_version_status"],
        model_version_status=_list(
            _object(
                ["version", "state", "status"],
                version=_STRING,
                state={"type": "string", "enum": ["AVAILABLE"]},
                status=_object(["error_code", "error_message"], error_code=_STRING, error_message=_STRING),
                digest=_STRING,
            )
        ),
    ),
    "ModelMetadata": _object(
        ["model_spec", "metadata"],
        model_spec=_object(["name", "signature_name", "version"], name=_STRING, signature_name=_STRING, version=_STRING),
        metadata=_object(["signature_def"], signature_def=_object(["signature_def"], signature_def=_map(_SIGNATURE))),
    ),
    "ServerMetadata": _object(["name", "version", "extensions"], name=_STRING, version=_STRING, extensions=_list(_STRING)),
    "Live": _flag("live"),
    "Ready": _flag("ready"),
    "ModelReady": _object(["name", "ready"], name=_STRING, ready={"type": "boolean", "const": True}),
    "InferenceMetadata": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_STRING,
        versions=_list(_STRING),
        platform=_STRING,
        inputs=_list(_TENSOR_METADATA),
        outputs=_list(_TENSOR_METADATA),
        parameters=_object([], digest=_STRING),
    ),
    "InferenceRequest": _object(
        ["inputs"],
        id=_STRING,
        parameters={
            "type": "object",
            "properties": {"signature_name": _SIGNATURE_NAME, "binary_data_output": {"type": "boolean"}},
        },
        inputs=_list(_INPUT),
        outputs=_list(_REQUESTED_OUTPUT),
    ),
    "InferenceResponse": _object(
        ["model_name", "model_version", "outputs"],
        model_name=_STRING,
        model_version=_STRING,
        id=_STRING,
        parameters=_PARAMETERS,
        outputs=_list(_OUTPUT),
    ),
    "Document": {"type": "object", "required": ["openapi", "paths"]},
}
