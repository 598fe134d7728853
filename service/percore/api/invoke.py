"""The steps that both protocols share: choose a signature of a model, check the names of inputs, run it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from percore.api.error_format import describe, names, shorten
from percore.api.flask_app import failed
from percore.errors import BadInput
from percore.handlers import Model, Tensors
from percore.model_metadata import DEFAULT_SIGNATURE, ModelInfo, Signature

DEFAULT_INPUT = "inputs"
"""The name of an input without a name in the request, if the handler declares no signature."""


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


def run(model: Model, signature: str, inputs: Tensors) -> Tensors:
    """Run the model. If it raises BadInput, the caller gets this error. Every other error is logged, and becomes HandlerFailed.

    So user code cannot answer with a status that means "this call did not run", after which the caller would send it again.
    """
    try:
        return model.predict(signature, inputs)
    except BadInput as error:
        raise BadInput(str(error)) from error  # a new one, because a user's subclass may have another status and code
    except Exception as error:
        raise failed(error) from error
