"""Bounds for bodies that are being received. Pure.

Only large bodies and bodies of unknown length count. So slow uploads do not prevent small calls.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from percore.errors import Overloaded
from percore.gateway.spool import SMALL_BYTES


class Uploads:
    """All bodies that are being received, and how many and how large together they may be."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.count = 0
        self._bytes = 0
        self._most = most
        self._most_bytes = most_bytes

    def admit(self, length: int | None) -> Upload:
        """Take in an upload of this length; None: unknown. Raises Overloaded if there are others and they are too many."""
        upload = Upload(self, counts=length is None or length > SMALL_BYTES)
        if upload.counts:
            if self.count >= self._most:
                raise Overloaded(f"{self.count} large bodies are being received, and no more may be; send the call again later")
            self.count += 1
            try:
                upload.grow(length or 0)
            except Overloaded:
                self.count -= 1
                raise
        return upload

    def reserve(self, size: int) -> None:
        """Count so many bytes more; raise Overloaded if they are too many."""
        if self.count > 1 and self._bytes + size > self._most_bytes:
            raise Overloaded(
                f"the large bodies that are being received have {self._bytes} bytes, and may have {self._most_bytes}; "
                "send the call again later"
            )
        self._bytes += size

    def release(self, size: int) -> None:
        """Count an upload no more."""
        self.count -= 1
        self._bytes -= size


class Upload:
    """One of them, from its head to its last byte; a context manager."""

    __slots__ = ("_size", "_uploads", "counts")

    def __init__(self, uploads: Uploads, *, counts: bool) -> None:
        self._uploads = uploads
        self._size = 0
        self.counts = counts

    def grow(self, size: int) -> None:
        """Count ``size`` bytes in all; raise Overloaded if they are too many."""
        if self.counts and size > self._size:
            self._uploads.reserve(size - self._size)
            self._size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.counts:
            self._uploads.release(self._size)
