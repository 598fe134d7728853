"""The memory that one call may take in a worker, for every kind of JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.service import Service

BODY_BYTES = 8 << 20
MOST_TIMES = 40
"""The factor in docs/operations/sizing.md and in the chart's `memory`."""
SPARE_BYTES = 32 << 20
"""The answer, and memory that the allocator keeps after the first large call."""
KINDS = {
    "empty lists": ("[", "[ ],"),
    "lists of one number": ("[", "[1],"),
    "rows of two lengths": ("[[1],", "[ ],"),
    "points": ("[", "[1,2],"),
    "objects": ("[", '{"a":1},'),
    "lists in lists": ("[", "[[ ]],"),
    "objects in objects": ("[", '{"a":{ }},'),
    "objects in lists": ("[", "[{ }],"),
    "short strings": ("[", '"ab",'),
    "digits": ("[", "1,"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_json_body_takes_a_bounded_multiple_of_its_size(kind: str) -> None:
    begin, unit = KINDS[kind]
    body = f'{{"inputs":{begin}{(unit * (BODY_BYTES // len(unit)))[:-1]}]}}'.encode()
    with Service(handler="percore.handlers.echo:Echo") as service:
        service.ready(1)
        for worker in service.workers:
            Path(f"/proc/{worker}/clear_refs").write_text("5")
        before = {worker: _peak(worker) for worker in service.workers}
        answer = service.post("/v1/models/default:predict", data=body)
        assert answer.status_code in (200, 400), answer.text[:200]
        assert set(service.workers) == set(before)
        taken = max(_peak(worker) - before[worker] for worker in before)
    assert taken < MOST_TIMES * len(body) + SPARE_BYTES, f"{taken / len(body):.1f} x"


@pytest.mark.parametrize("unit", ["[],", "{},", "[[]],", "[{}],"])
def test_a_large_body_of_empty_lists_is_refused_before_it_is_read(unit: str) -> None:
    body = f'{{"inputs":[{(unit * (BODY_BYTES // len(unit)))[:-1]}]}}'.encode()
    with Service(handler="percore.handlers.echo:Echo") as service:
        answer = service.ready(1).post("/v1/models/default:predict", data=body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("body: expected at most 100000 empty lists and objects, got ")


def _peak(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
