"""A user's own code as a model: imports the class that ``PERCORE_HANDLER`` names, and checks its outputs.

Only ``percore.model_store`` imports this module.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from percore.dtypes import BY_NAME
from percore.errors import BadInput, LoadError
from percore.handlers import Array, Handler, Tensors
from percore.model_metadata import DEFAULT_SIGNATURE, ModelInfo, Signature

PLATFORM = "percore_handler"
VERSION = 1


class CustomModel:
    """Implements ``percore.handlers.Model`` for a user's handler."""

    def __init__(self, handler: Handler, info: ModelInfo) -> None:
        self.info = info
        self._handler = handler

    def predict(self, signature: str, inputs: Tensors) -> Tensors:  # noqa: ARG002 (a handler has but one)
        """Call the handler; raise TypeError if it does not return arrays by name."""
        outputs: object = self._handler.predict(inputs)
        if not isinstance(outputs, Mapping):
            raise TypeError(f"predict must return a mapping of names to arrays; it returned {type(outputs).__name__}")
        return {_name(name): _array(name, value) for name, value in outputs.items()}

    def encode_examples(self, examples: Sequence[Mapping[str, Any]]) -> Array:  # noqa: ARG002
        """Raise BadInput: ``tf.Example`` needs TensorFlow, and a handler may run without it."""
        raise BadInput(f"examples: model {self.info.name!r} is a handler and takes no examples; use :predict")


def load(target: str, name: str, labels: tuple[str, ...] = ()) -> CustomModel:
    """Import, construct and load the handler ``target``, as ``module:Class``, and serve it as version 1 of ``name``.

    Raises LoadError with one sentence: it names the missing part, or the code that raised an error.
    """
    began = time.perf_counter()
    handler = _instance(target)
    signature = getattr(handler, "signature", None)
    if not isinstance(signature, Signature | None):
        raise LoadError(f"handler {target}: signature must be a percore.model_metadata.Signature; it is {signature!r}")
    signatures = {} if signature is None else {DEFAULT_SIGNATURE: signature}
    seconds = round(time.perf_counter() - began, 3)
    return CustomModel(handler, ModelInfo(name, VERSION, PLATFORM, signatures, labels, seconds))


def _instance(target: str) -> Handler:
    """Return a loaded instance of the class that ``target`` names."""
    found = _class(target)
    try:
        handler: Handler = found()
    except (Exception, SystemExit) as error:
        raise LoadError(f"handler {target}: its constructor raised {error_line(error)}") from error
    try:
        handler.load()
    except (Exception, SystemExit) as error:
        raise LoadError(f"handler {target}: load() raised {error_line(error)}") from error
    return handler


def _class(target: str) -> Any:
    module, _, name = target.partition(":")
    found = getattr(import_module(f"handler {target}", module), name, None)
    if not isinstance(found, type):
        raise LoadError(f"handler {target}: module {module!r} has no class {name!r}")
    for method in ("load", "predict"):
        if not callable(getattr(found, method, None)):
            raise LoadError(f"handler {target}: class {name!r} has no method {method!r}")
    return found


def import_module(wanted_by: str, module: str) -> Any:
    """Import a module of the user; raise LoadError, which begins with ``wanted_by``."""
    here = str(Path.cwd())
    if here not in sys.path:  # at the end, so that a user's settings.py or click.py does not hide a library's
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise LoadError(f"{wanted_by}: there is no module {error.name!r} in {here} or installed") from error
        raise LoadError(f"{wanted_by}: module {module!r} imports {error.name!r}, which is not installed") from error
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise LoadError(f"{wanted_by}: importing module {module!r} raised {error_line(error)}") from error


def error_line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"predict must name its outputs by str; it used {name!r}")
    return name


def _array(name: str, value: object) -> Array:
    """Return ``value`` as an array whose type can be sent. Strings become an object array of bytes."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"predict returned {name!r} as {type(value).__name__}, which numpy cannot convert: {error}") from error
    if array.dtype.kind in "OSU":
        # Converted again, to objects, because numpy's own strings lose zero bytes at their end.
        return _strings(name, np.asarray(value, object))
    if array.dtype.name not in BY_NAME:
        raise TypeError(f"predict returned {name!r} with dtype {array.dtype.name}; known: {', '.join(BY_NAME)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _strings(name: str, array: Array) -> Array:
    strings = np.empty(array.shape, object)
    for index, each in np.ndenumerate(array):
        if not isinstance(each, str | bytes):
            raise TypeError(f"predict returned {name!r} as strings, but one element is a {type(each).__name__}")
        strings[index] = each.encode() if isinstance(each, str) else bytes(each)
    return strings
