"""Finds the model file in a version folder. It reads only names of files, and does not import TensorFlow."""

from __future__ import annotations

from pathlib import Path

from percore.errors import LoadError

SAVED_MODEL, KERAS = "tensorflow_savedmodel", "keras"
"""Platforms, as in ``ModelInfo``."""
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
KERAS_FILES = ("model.keras", "model.h5", "model.hdf5")
"""If there are several, the first one is used."""
KERAS_SUFFIXES = tuple(Path(name).suffix for name in KERAS_FILES)
NAMES = (SAVED_MODEL_FILES[0], *KERAS_FILES)
"""The usual names, for messages."""


def platform(folder: Path) -> str | None:
    """Return the platform of the model in ``folder``; None if there is no model. Raises LoadError as ``keras_file`` does."""
    if any((folder / name).is_file() for name in SAVED_MODEL_FILES):
        return SAVED_MODEL
    return KERAS if keras_file(folder) else None


def keras_file(folder: Path) -> Path | None:
    """Return the Keras file in ``folder``: one of the usual names, or else the only one. None if there is none.

    Raises LoadError if there are several and none has a usual name.
    """
    for name in KERAS_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(each for each in folder.iterdir() if each.suffix in KERAS_SUFFIXES and each.is_file())
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise LoadError(
            f"version folder {folder} holds several Keras files, {names}: rename the one to serve to {' or '.join(KERAS_FILES)}"
        )
    return found[0] if found else None
