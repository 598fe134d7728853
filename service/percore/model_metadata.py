"""Metadata of the models that are served. Read-only routes answer from it, and calls find their model in it.

A worker builds the catalog when its models are loaded and hands it to the status server as JSON, so that status, metadata
and the OpenAPI document are answered while the worker computes. No numpy and no TensorFlow here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from percore.errors import NotFound

DEFAULT_SIGNATURE = "serving_default"

PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

ENVIRON_KEY = "percore.call"
"""Where a call's WSGI environ has its ``CallContext``."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, type and shape of an input or an output."""

    name: str
    dtype: str
    """A name of ``percore.dtypes``."""
    shape: tuple[int | None, ...] | None
    """None for an unknown dimension; None instead of the tuple if even the rank is unknown."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One callable of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    method: str = PREDICT
    """TensorFlow Serving's method name: predict, classify or regress."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of one model."""

    name: str
    version: int
    platform: str
    """``tensorflow_savedmodel``, ``keras``, ``percore_handler`` or ``wsgi_app``."""
    signatures: Mapping[str, Signature]
    """By name. Empty for a user's handler that declares none: it takes any input. Empty for an app."""
    labels: tuple[str, ...] = ()
    load_seconds: float = 0.0
    digest: str = ""
    """Digest of the files that the model was loaded from, ``sha256:`` and hexadecimal digits; empty if it is not known."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model that is served."""

    models: tuple[ModelInfo, ...] = ()
    by_name: Mapping[str, tuple[ModelInfo, ...]] = field(init=False, repr=False, compare=False)
    """Versions of each model, the newest first."""

    def __post_init__(self) -> None:
        by_name: dict[str, tuple[ModelInfo, ...]] = {}
        for model in sorted(self.models, key=lambda each: (each.name, -each.version)):
            by_name[model.name] = (*by_name.get(model.name, ()), model)
        object.__setattr__(self, "by_name", by_name)

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.models)

    def versions(self, name: str) -> tuple[ModelInfo, ...]:
        """Return the versions of a model, the newest first; raise NotFound if there is no such model."""
        if name not in self.by_name:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise NotFound(f"model {name!r} is not served; served: {known}")
        return self.by_name[name]

    def find(self, name: str, version: int | None = None, label: str | None = None) -> ModelInfo:
        """Return the version with this number or label; without both, the newest."""
        versions = self.versions(name)
        if version is None and label is None:
            return versions[0]
        for model in versions:
            if model.version == version or (label is not None and label in model.labels):
                return model
        if label is not None:
            labels = ", ".join(sorted(each for model in versions for each in model.labels)) or "none"
            raise NotFound(f"model {name!r} has no version with the label {label!r}; labels: {labels}")
        numbers = ", ".join(str(model.version) for model in versions)
        raise NotFound(f"model {name!r} has no version {version}; versions: {numbers}")

    def document(self) -> dict[str, Any]:
        """Return plain JSON values that ``from_document`` reads back."""
        return {"models": [asdict(model) for model in self.models]}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Catalog:
        """Build the catalog from the values of ``document``."""
        return cls(tuple(_model(each) for each in document["models"]))


@dataclass(slots=True)
class CallContext:
    """Model and version of one call. The application sets them as soon as it knows them, for the worker's log and metrics."""

    model: str = ""
    """The served model's name; empty until one is found, so that unknown names never become metric labels."""
    version: int = 0
    """The served version; 0 until it is found."""


def _model(document: Mapping[str, Any]) -> ModelInfo:
    signatures = {name: _signature(each) for name, each in document["signatures"].items()}
    return ModelInfo(**{**document, "signatures": signatures, "labels": tuple(document["labels"])})


def _signature(document: Mapping[str, Any]) -> Signature:
    return Signature(
        inputs=tuple(_spec(each) for each in document["inputs"]),
        outputs=tuple(_spec(each) for each in document["outputs"]),
        method=document["method"],
    )


def _spec(document: Mapping[str, Any]) -> TensorSpec:
    shape = document["shape"]
    return TensorSpec(document["name"], document["dtype"], None if shape is None else tuple(shape))
