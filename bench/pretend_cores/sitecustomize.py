"""Python imports this at its start when this folder is in PYTHONPATH: the process sees PRETENDED_CORES cores.

It shows what many workers cost on a machine with few cores. The pretended cores take turns on the real ones.
"""

import os
from collections.abc import Iterable

_real = sorted(os.sched_getaffinity(0))
_pretended = int(os.environ["PRETENDED_CORES"])
_pin = os.sched_setaffinity


def _all_pretended(_pid: int) -> set[int]:
    return set(range(_pretended))


def _pin_to_real(pid: int, cores: Iterable[int]) -> None:
    _pin(pid, {_real[core % len(_real)] for core in cores})


os.sched_getaffinity = _all_pretended
os.sched_setaffinity = _pin_to_real
