"""All results of one run of the bench, as one document. It can be written, read, and shown again."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.alone import Alone
from bench.bulk import Bulk
from bench.bursts import Burst
from bench.empty import EmptyCall
from bench.footprint import Footprint
from bench.gateway import GatewayCosts


@dataclass(slots=True)
class Results:
    """The tables; a table is empty if it was not measured."""

    machine: str
    cores: int
    sleep: float
    """Seconds that an I/O-bound call waits."""
    alone: Alone | None = None
    alone_again: Alone | None = None
    """The same at the end of the run. The difference is the drift of the machine."""
    cpu: list[Burst] = field(default_factory=list)
    io: list[Burst] = field(default_factory=list)
    empty: EmptyCall | None = None
    bulk: list[Bulk] = field(default_factory=list)
    footprint: Footprint | None = None
    gateway: GatewayCosts | None = None

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")


def read(path: Path) -> Results:
    """Read a document of ``write``."""
    found: Results = _restored(Results, json.loads(path.read_text()))
    return found


def _restored(kind: Any, value: Any) -> Any:
    """Turn JSON back into the dataclass, list or tuple that ``kind`` says."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _restored(next(each for each in arguments if each is not type(None)), value)
    if origin in (list, tuple):
        return origin(_restored(arguments[0], each) for each in value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast("Any", kind)(**{name: _restored(hints[name], each) for name, each in value.items()})
    return value
