"""Turns plain Python values into features of a ``tf.Example``: decides in which list of the message each value is stored.

Only ``percore.handlers.runners`` imports it. It is a module of its own, so that it can be tested without TensorFlow.
Source: tensorflow/core/example/feature.proto, and TensorFlow Serving's rules for JSON in classify and regress requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from percore.errors import BadInput

Kind = Literal["int64_list", "float_list", "bytes_list"]
Feature = tuple[Kind, list[Any]] | None
"""None for an empty list: such a feature is written without a kind, so the model uses its default."""

INT64 = range(-(2**63), 2**63)


def features(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Feature]]:
    """Return the features of each example; raise BadInput naming ``examples[i].feature``."""
    return [
        {name: feature(value, f"examples[{index}].{name}") for name, value in example.items()}
        for index, example in enumerate(examples)
    ]


def feature(value: Any, where: str) -> Feature:
    """Return the feature for ``value``, a scalar or a list. Raise BadInput, which names ``where``, if it fits no feature.

    Booleans become whole numbers. Whole numbers in a list with floats become floats.
    """
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        return None
    if all(isinstance(each, bytes) for each in values):
        return "bytes_list", values
    if not all(isinstance(each, int | float) for each in values):
        raise BadInput(f"{where}: must be numbers, booleans or bytes, or a flat list of one kind; got {_names(values)}")
    for each in values:
        if isinstance(each, int) and each not in INT64:
            raise BadInput(f"{where}: a whole number must fit 64 bits; got {each}")
    if any(isinstance(each, float) for each in values):
        return "float_list", [float(each) for each in values]
    return "int64_list", [int(each) for each in values]


def _names(values: Sequence[Any]) -> str:
    return ", ".join(sorted({type(each).__name__ for each in values}))
