"""The note that ``percore fetch`` writes beside the models: their source and their digest."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from percore.errors import LoadError

FILE = ".percore-source.json"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The source of the models of a repository."""

    uri: str
    """The URI, without the parts that may be secret."""
    digest: str
    """``sha256:`` and 64 hexadecimal digits."""


def write(repository: Path, source: ModelSource) -> None:
    """Write the note."""
    (repository / FILE).write_text(json.dumps(asdict(source)))


def read(repository: Path) -> ModelSource | None:
    """Return the note; None if there is none. Raises LoadError if it cannot be read."""
    try:
        return ModelSource(**json.loads((repository / FILE).read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(f"{repository / FILE} cannot be read: {error}") from error
