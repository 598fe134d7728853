"""Lets no process fork while a file exists. Python imports this module at its start if this folder is in PYTHONPATH."""

import errno
import os
from pathlib import Path

_fork = os.fork
_file = Path(os.environ["PERCORE_STATE_DIR"] + "-failing-fork")


def _fork_if_there_is_room() -> int:
    if _file.exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = _fork_if_there_is_room
