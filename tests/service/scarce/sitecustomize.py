"""Python imports this at its start where this folder is in PYTHONPATH: while a file exists, no process can be forked."""

import errno
import os
from pathlib import Path

_fork = os.fork
_file = Path(os.environ["PERCORE_STATE_DIR"] + "-scarce")


def _fork_if_there_is_room() -> int:
    if _file.exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = _fork_if_there_is_room
