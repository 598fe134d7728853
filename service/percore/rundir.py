"""The folder that the processes of one service share."""

from __future__ import annotations

from pathlib import Path

from percore.errors import StartError


def make(folder: Path) -> None:
    """Make sure that the folder is there; raise StartError where it cannot be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"PERCORE_RUN_DIR={str(folder)!r}: cannot be made a folder: {error.strerror}") from error
