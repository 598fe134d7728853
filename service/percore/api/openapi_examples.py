"""Examples for the OpenAPI document: bodies of zeros. The models that are served now accept them. Read by ``openapi`` alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from percore.dtypes import BY_NAME
from percore.model_metadata import DEFAULT_SIGNATURE, Catalog, ModelInfo, Signature, TensorSpec

Json = dict[str, Any]

MAX_EXAMPLE_VALUES = 1024
"""Larger inputs get no example: the document would grow with them."""


def _with_small_example(catalog: Catalog) -> Iterable[tuple[ModelInfo, Signature]]:
    """Yield the newest version of each model with its default signature, if an example of it is small."""
    for versions in catalog.by_name.values():
        signature = versions[0].signatures.get(DEFAULT_SIGNATURE)
        if signature and sum(math.prod(_sizes(spec)) for spec in signature.inputs) <= MAX_EXAMPLE_VALUES:
            yield versions[0], signature


def _sizes(spec: TensorSpec) -> list[int]:
    return [1 if size is None else size for size in spec.shape or ()]


def _zeros(spec: TensorSpec, sizes: Sequence[int]) -> Any:
    if sizes:
        return [_zeros(spec, sizes[1:]) for _ in range(sizes[0])]
    return {"bool": False, "bytes": ""}.get(spec.dtype, 0)


def predict_examples(catalog: Catalog) -> Json:
    """Return a body of zeros for each model, in the column form, which every signature has."""
    return {
        info.name: {"value": {"inputs": {spec.name: _zeros(spec, _sizes(spec)) for spec in signature.inputs}}}
        for info, signature in _with_small_example(catalog)
    }


def inference_examples(catalog: Catalog) -> Json:
    """Return a body of zeros for each model, in the form of the Open Inference Protocol."""
    return {
        info.name: {"value": {"inputs": [_inference_input(spec) for spec in signature.inputs]}}
        for info, signature in _with_small_example(catalog)
    }


def _inference_input(spec: TensorSpec) -> Json:
    sizes = _sizes(spec)
    data = _zeros(spec, [math.prod(sizes)])
    return {"name": spec.name, "datatype": BY_NAME[spec.dtype].openinference, "shape": sizes, "data": data}


def example_requests(catalog: Catalog, method: str) -> Json:
    """Return a body without features for each signature of the method.

    Only the graph of a signature says which features it needs.
    """
    return {
        f"{info.name}-{info.version}-{name}": {"value": {"signature_name": name, "examples": [{}]}}
        for info in catalog
        for name, signature in info.signatures.items()
        if signature.method == method
    }
