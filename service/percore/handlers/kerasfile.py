"""Reads a Keras file: by Keras 3, or by Keras 2 (``tf_keras``) if Keras 3 cannot read it or would compute something else.

``tf_keras`` is an extra, ``legacy``. It is imported only for a file that needs it, because that takes time and memory.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras

from percore.errors import LoadError
from percore.handlers.runners import reason

logger = logging.getLogger(__name__)

UNKNOWN = re.compile(r"Could not locate (?:class|function) '([^']+)'|Unknown (?:layer|object|\w+ function): '?([\w>]+)")
FUNCTIONS = re.compile(r"(tf_)?keras\.(src\.)?(activations|constraints|initializers|losses|metrics|regularizers)(\.\w+)*")
"""Modules of Keras whose functions only compute."""
OPERATIONS = re.compile(
    r"(compat\.v1\.)?((__operators__|bitwise|linalg|math|nn|signal|strings)\.\w+(\.\w+)*|keras\.(backend|activations)\.\w+|"
    r"abs|add|arg(max|min|sort)|boolean_mask|broadcast_to|cast|clip_by_(norm|value)|concat|convert_to_tensor|cumsum|divide|"
    r"einsum|equal|exp|expand_dims|eye|fill|floor|gather(_nd)?|greater(_equal)?|identity|less(_equal)?|logical_(and|not|or)|"
    r"matmul|maximum|meshgrid|minimum|multiply|negative|norm|not_equal|one_hot|ones(_like)?|pad|pow|range|rank|"
    r"reduce_\w+|repeat|reshape|reverse(_sequence)?|roll|round|scatter_nd|sequence_mask|shape|sigmoid|sign|sin|cos|size|slice|"
    r"sort|split|sqrt|square|squeeze|stack|stop_gradient|strided_slice|subtract|tanh|tensordot|tile|transpose|truediv|"
    r"unstack|where|zeros(_like)?|image\.(resize|per_image_standardization|central_crop|flip_\w+))"
)
"""Functions of TensorFlow that only compute. A ``TFOpLambda`` layer may call these."""
CODE_KEYS = ("function_type", "output_shape_type", "mask_type")
CHANGED_FORMULAS = frozenset({"hard_sigmoid"})
"""Keras 3 has functions of these names too, but with another formula: 0.2 x + 0.5 became x / 6 + 0.5."""


@dataclass(frozen=True, slots=True)
class KerasFile:
    """The content of a Keras file, without its weights."""

    version: str
    """Version of the Keras that wrote it; empty if the file does not say."""
    config: Any
    """The model without its weights, as a JSON value."""

    @property
    def by_keras_2(self) -> bool:
        """Whether Keras 2, or 1, wrote it."""
        return not self.version.startswith("3.")

    def holds_code(self) -> bool:
        """Return whether it has Python functions, in the form of Keras 2 or 3.

        Keras's own check is not enough: Keras 2 checks only its own newest format.
        """
        return any(
            each.get("class_name") == "__lambda__" or "lambda" in [each.get(key) for key in CODE_KEYS]
            for each in _nodes(self._config_without_compile())
            if isinstance(each, dict)
        )

    def foreign_call(self, is_registered: Callable[[str], bool]) -> str:
        """Return the first function or class that Keras 2 would call and that is not one of its own layers; empty if there is
        none.

        Keras 2 imports every module that a file names, and calls every function of TensorFlow that it names. ``is_registered``
        returns whether a module of the user has registered a name.
        """
        for each in _nodes(self._config_without_compile()):
            if isinstance(each, dict) and (found := _foreign_call(each, is_registered)):
                return found
        return ""

    def _config_without_compile(self) -> Any:
        """Return the model without its compile settings, which percore never reads."""
        if isinstance(self.config, dict):
            return {key: value for key, value in self.config.items() if key != "compile_config"}
        return self.config

    def changed_formulas(self) -> set[str]:
        """Return the names of functions that Keras 3 computes by another formula than the Keras that wrote the file."""
        return {each for each in _nodes(self.config) if isinstance(each, str)} & CHANGED_FORMULAS if self.by_keras_2 else set()


def read(path: Path, title: str, *, allow_code: bool) -> Any:
    """Return the model of Keras 3 or 2, not compiled; ``title`` names it in the log.

    Raises ValueError if the file holds code that is not allowed, or is not a Keras file. Raises LoadError if no installed Keras
    can read it. For a file that Keras 3 wrote, raises the error of Keras 3.
    """
    content = _read_content(path)
    if content.holds_code() and not allow_code:
        raise ValueError(
            "it has a Lambda layer, whose Python function is in the file. PERCORE_ALLOW_CODE=yes lets it run: "
            "set it only if you trust the file"
        )
    if changed_formulas := content.changed_formulas():
        failure = f"Keras 2 wrote it, and Keras 3 computes {', '.join(sorted(changed_formulas))} by another formula"
    else:
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=not allow_code)
        except Exception as error:
            # Keras 2 cannot read a file of Keras 3.
            if not content.by_keras_2:
                raise _with_advice(error) from error
            unknown = _unknown_class(error)
            failure = f"Keras 3 does not know {unknown!r}" if unknown else f"Keras 3 cannot read it: {reason(error)}"
    model = _read_by_keras_2(path, content, failure, allow_code=allow_code)
    logger.info("%s is read by Keras 2, because: %s", title, failure)
    return model


def _foreign_call(node: dict[str, Any], is_registered: Callable[[str], bool]) -> str:
    """Return the function or class that Keras 2 would call for a node of a configuration.

    Empty if it calls none, or only its own layers.
    """
    name, module = str(node.get("class_name", "")), node.get("module")
    config = node.get("config")
    if name == "Lambda":
        return "a Lambda layer"
    if name in ("TFOpLambda", "SlicingOpLambda"):
        function = str(config.get("function", "")) if isinstance(config, dict) else ""
        return "" if OPERATIONS.fullmatch(function) else f"the function tf.{function}"
    if name in ("ClassMethod", "InstanceMethod", "InstanceProperty"):
        return f"a {name} layer"
    if name == "function":
        is_known = FUNCTIONS.fullmatch(str(module)) or is_registered(str(node.get("registered_name") or config))
        return "" if is_known else f"the function {config} of the module {module}"
    if module and str(module).partition(".")[0] not in ("keras", "tf_keras", "builtins"):
        registered = str(node.get("registered_name") or name)
        return (
            ""
            if is_registered(registered)
            else f"{name} of the module {module}, which no module of PERCORE_IMPORT has registered"
        )
    return ""


def _read_by_keras_2(path: Path, content: KerasFile, failure: str, *, allow_code: bool) -> Any:
    try:
        import tf_keras  # noqa: PLC0415
    except ImportError as error:
        raise LoadError(f"{failure}; Keras 2 may read it, and is not installed: install percore[legacy]") from error
    if not allow_code and (
        called := content.foreign_call(lambda name: tf_keras.saving.get_registered_object(name) is not None)
    ):
        raise ValueError(
            f"it calls {called}, and Keras 2 must read it ({failure}). PERCORE_ALLOW_CODE=yes lets it run: set it only if you "
            "trust the file"
        )
    try:
        return tf_keras.models.load_model(path, compile=False, safe_mode=not allow_code)
    except Exception as error:
        raise LoadError(f"{failure}; Keras 2 cannot read it: {reason(_with_advice(error))}") from error


def _unknown_class(error: Exception) -> str | None:
    """Return the name of the class or function that Keras did not find; None if it is another error."""
    found = UNKNOWN.search(str(error))
    return (found[1] or found[2]) if found else None


def _with_advice(error: Exception) -> Exception:
    """Return the error. If a class is not registered, return an error that says what to do."""
    name = _unknown_class(error)
    if name is None:
        return error
    return TypeError(
        f"it uses {name!r}, which no module has registered: decorate it with "
        "`keras.saving.register_keras_serializable`, and name its module in PERCORE_IMPORT"
    )


def _read_content(path: Path) -> KerasFile:
    """Read the file without its weights; raise ValueError if it is not a Keras file, or has weights only."""
    # A file may be both a zip archive and HDF5. The next line has Keras's own rule, so we check the part that Keras reads.
    if path.suffix == ".keras" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json")).get("keras_version", "")
            return KerasFile(version, json.loads(archive.read("config.json")))
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path.name} is no Keras file: its content is neither a Keras archive nor HDF5")
    with h5py.File(path) as file:
        config, version = (_text(file.attrs.get(key, "")) for key in ("model_config", "keras_version"))
    if not config:
        raise ValueError(f"{path.name} has weights without a model: write it by `model.save`, not by `save_weights`")
    return KerasFile(version, json.loads(config))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _nodes(value: Any) -> Iterator[Any]:
    """Yield a JSON value and all values in it."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        yield each
