"""What both protocols do with a model: choose a signature, check names, run it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from percore.api.error_format import described, names, shorten
from percore.api.flask_app import failed
from percore.errors import BadInput
from percore.handlers import Model, Tensors
from percore.model_metadata import DEFAULT_SIGNATURE, ModelInfo, Signature

UNNAMED = "inputs"
"""The name of the one tensor that a request gives no name, where a handler declares no signature."""


def signature_name(document: dict[str, Any], field: str = "signature_name") -> str:
    """Return the signature that a request names, or the default one."""
    name = document.get("signature_name", DEFAULT_SIGNATURE)
    if type(name) is not str:
        raise BadInput(f"{field}: expected a string, got {described(name)}")
    return name or DEFAULT_SIGNATURE


def choose(info: ModelInfo, name: str) -> Signature | None:
    """Return a model's signature by name; None where the model declares none at all."""
    if not info.signatures:
        return None
    if name not in info.signatures:
        known = names(info.signatures)
        raise BadInput(f"signature_name: model {info.name!r} has no signature {shorten(name)}; known: {known}")
    return info.signatures[name]


def check_names(expected: Iterable[str], given: Iterable[str], field: str) -> None:
    """Raise BadInput where the inputs given are not exactly those expected."""
    expected, given = set(expected), set(given)
    if expected != given:
        missing, unknown = names(expected - given), names(given - expected)
        raise BadInput(f"{field}: expected the inputs {names(expected)}; missing: {missing}; unknown: {unknown}")


def run(model: Model, signature: str, inputs: Tensors) -> Tensors:
    """Run the model. Of what it raises only BadInput passes to the caller; anything else is logged and is HandlerFailed.

    So user code can never answer with a status that means "this call did not run", which would have it sent again.
    """
    try:
        return model.predict(signature, inputs)
    except BadInput as error:
        raise BadInput(str(error)) from error  # also a kind of the user's own, with a status and a code of its own
    except Exception as error:
        raise failed(error) from error
