"""The folder that the processes of one service share: unix sockets and locks.

Cleaners of ``/tmp`` remove files that were not used for days, and sometimes all files. So the process that owns a file here
touches it regularly, and creates it again if it is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from percore.errors import StartError

log = logging.getLogger("percore.state_dir")

KEY = "PERCORE_STATE_DIR"
TOUCH_SECONDS = 3600.0
"""A file is touched when it is this old. Cleaners remove files that are one or ten days old."""


def make(folder: Path, key: str = KEY) -> None:
    """Create the folder if it is missing; raise StartError if that fails."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"{key}={str(folder)!r}: the folder cannot be created: {error.strerror}") from error


def ensure_owned(folder: Path, key: str = KEY) -> None:
    """Create the folder if it is missing; raise StartError if it belongs to another user.

    It may belong to root, as a volume of a pod does. It must not be a symbolic link, which another user could have made in
    ``/tmp``.
    """
    with os_errors_as_start_errors(folder, key):
        if folder.is_symlink():
            raise StartError(f"{key}={str(folder)!r}: must be a folder, and is a symbolic link")
        make(folder, key)
        if folder.lstat().st_uid not in (0, os.geteuid()):
            raise StartError(f"{key}={str(folder)!r}: must belong to the user that runs the service")


@contextlib.contextmanager
def os_errors_as_start_errors(path: Path, key: str = KEY) -> Iterator[None]:
    """Raise StartError, which names the file, for an error of the file system."""
    try:
        yield
    except OSError as error:
        raise StartError(f"{path}: cannot be used (it is in {key}): {error.strerror or error}") from error


def touch(path: Path) -> bool:
    """Renew the time of this file if it is old, so that no cleaner removes it. Return False if the file is gone."""
    try:
        if time.time() - path.lstat().st_mtime > TOUCH_SECONDS:
            os.utime(path, follow_symlinks=False)
    except OSError:
        return False
    return True


def clear_socket(path: Path) -> None:
    """Remove the file of a socket that a killed process left; raise StartError if something else is in its place."""
    with os_errors_as_start_errors(path), contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise StartError(f"{path}: must be a socket, or must not exist")
        path.unlink()


class Lock:
    """A file that one process at a time holds. The kernel releases it when the process ends, however it ends."""

    def __init__(self, path: Path, key: str = KEY) -> None:
        """Errors name ``key``, the setting of the folder."""
        self._path = path
        self._key = key
        self._fd = -1
        self._warned = False

    def take(self) -> bool:
        """Take it; return False if another process has it. Raises StartError if the file cannot be used."""
        ensure_owned(self._path.parent, self._key)
        while True:
            with os_errors_as_start_errors(self._path, self._key):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    os.close(fd)
                    if isinstance(error, BlockingIOError):
                        return False
                    raise
            if self._is_here(fd):
                break
            os.close(fd)  # the file was removed before it was locked, so the next process would create and lock a new file
        self.close()
        self._fd = fd
        return True

    def _is_here(self, fd: int) -> bool:
        """Return whether the path still names the locked file."""
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(fd))
        except OSError:
            return False

    def keep(self) -> bool:
        """Touch the file, and take the lock again if the file was removed; return False if another process has the lock now."""
        if touch(self._path) and self._is_here(self._fd):
            self._warned = False
            return True
        if not self._warned:
            self._warned = True
            log.warning("%s was removed: it is created again", self._path)
        try:
            return self.take()
        except StartError as error:  # no other process can take the lock either
            log.debug("%s", error)
            return True

    def close(self) -> None:
        """Close the file. This releases the lock. In a forked process the lock stays with the parent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
