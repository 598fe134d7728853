"""The spool: holds bytes of requests and answers that wait, in memory up to a bound, and in unlinked files above it.

Bytes stay in memory while there is room. Large bodies and answers may use half of it, so that the rest is free for small ones.
Bytes for which memory has no room go to files. A file has no name, so the kernel frees it when the gateway ends, however it
ends. Reads and writes of files run in a small pool of threads: the event loop never waits for a disk.

Bodies that are being received have bounds of their own, so that slow uploads do not prevent small calls.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from percore.errors import BodyTimeout, BodyTooLarge, Overloaded

SMALL_BYTES = 64 * 1024
"""A body or an answer over this size is large."""
PIECE_BYTES = 512 * 1024
"""How much of a file is read at once."""
THREADS = 4


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Bounds, in bytes and seconds. ``memory`` and ``disk`` are for all bodies together."""

    memory: int
    disk: int
    body_bytes: int = sys.maxsize
    body_seconds: float | None = None
    """How long one body may take to arrive."""
    uploads: int = sys.maxsize
    """How many large bodies are received at the same time."""
    upload_bytes: int = sys.maxsize
    """How many bytes these large bodies may have together. If there is only one, it may have more."""


class Incoming(Protocol):
    """The part of a request that the spool uses: the body as it arrives."""

    content_length: int | None
    """The body's size; None for a chunked body."""
    complete: bool
    """Whether the last byte of the body has arrived."""

    async def read(self) -> list[bytes]:
        """Return the pieces that have arrived and were not read yet; an empty list at the end of the body."""


class Spool:
    """Memory and disk for all bodies, and their bounds. Used only from the event loop."""

    def __init__(self, folder: Path, limits: SpoolLimits) -> None:
        self.folder = folder
        self.limits = limits
        self.memory = 0
        """Bytes in memory now."""
        self.disk = 0
        """Bytes that are reserved in files now."""
        self.uploads = Uploads(limits.uploads, limits.upload_bytes)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="spool")

    async def receive(self, request: Incoming) -> Body:
        """Return the whole body of a request; raise Overloaded, BodyTooLarge or BodyTimeout if that is not possible."""
        with self.uploads.admit(request.content_length) as upload:
            body = self.body(request.content_length)
            try:
                if request.complete:
                    await self._copy(request, body, upload)
                else:
                    async with asyncio.timeout(self.limits.body_seconds):
                        await self._copy(request, body, upload)
            except TimeoutError:
                body.discard()
                raise BodyTimeout(f"the body was not complete within {self.limits.body_seconds:g} s") from None
            except BaseException:
                body.discard()
                raise
        return body

    async def _copy(self, request: Incoming, body: Body, upload: Upload) -> None:
        while pieces := await request.read():
            size = body.size + sum(map(len, pieces))
            if size > self.limits.body_bytes:
                raise BodyTooLarge(f"the body must be at most {self.limits.body_bytes} bytes, and more came in chunks")
            upload.grow(size)
            await body.write(*pieces)

    def body(self, size: int | None) -> Body:
        """Return an empty body and reserve room for ``size`` bytes; None: the size is not known yet.

        Raises Overloaded if there is no room.
        """
        body = Body(self)
        if size:
            body.reserve(size)
        return body

    def take_memory(self, size: int, *, large: bool) -> bool:
        """Reserve memory if there is room. ``large`` bodies may use only half of it. Return False if there is no room."""
        if not self._fits(size, large=large):
            return False
        self.memory += size
        return True

    def _fits(self, size: int, *, large: bool) -> bool:
        return self.memory + size <= (self.limits.memory // 2 if large else self.limits.memory)

    def take_disk(self, size: int) -> None:
        """Reserve room in files; raise Overloaded if there is none."""
        if self.disk + size > self.limits.disk:
            raise Overloaded(f"the spool of the gateway is full ({self.limits.disk} bytes); send the call again later")
        self.disk += size

    def has_room(self, size: int, *, large: bool) -> bool:
        """Tell whether there is room for ``size`` more bytes, in memory or in files."""
        return self._fits(size, large=large) or self.disk + size <= self.limits.disk

    async def run(self, work: object, *arguments: object) -> object:
        """Run blocking work on files in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)  # type: ignore[arg-type]

    def close_file(self, fd: int) -> None:
        """Close a file in a thread, because the kernel needs milliseconds to free the blocks of a large file."""
        self._threads.submit(os.close, fd)

    def open_file(self) -> int:
        """Return a file without a name; runs in a thread, raises OSError."""
        try:
            return os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        fd, name = tempfile.mkstemp(dir=self.folder)  # the file system does not have O_TMPFILE
        Path(name).unlink()
        return fd


class Uploads:
    """All bodies that are being received. Only large ones and those of unknown length count."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.count = 0
        self._bytes = 0
        self._most = most
        self._most_bytes = most_bytes

    def admit(self, length: int | None) -> Upload:
        """Accept an upload of this length; None: not known. Raises Overloaded if a bound of uploads is reached."""
        upload = Upload(self, counts=length is None or length > SMALL_BYTES)
        if upload.counts:
            if self.count >= self._most:
                raise Overloaded(f"{self.count} large bodies are being received, the most allowed; send the call again later")
            self.count += 1
            try:
                upload.grow(length or 0)
            except Overloaded:
                self.count -= 1
                raise
        return upload

    def reserve(self, size: int) -> None:
        """Count ``size`` more bytes; raise Overloaded if all uploads together have too many."""
        if self.count > 1 and self._bytes + size > self._most_bytes:
            raise Overloaded(
                f"the large bodies that are being received have {self._bytes} bytes and need {size} more, "
                f"and may have {self._most_bytes} bytes; send the call again later"
            )
        self._bytes += size

    def release(self, size: int) -> None:
        """Subtract an upload of ``size`` bytes that has ended."""
        self.count -= 1
        self._bytes -= size


class Upload:
    """A body that is being received, from its head to its last byte; a context manager."""

    __slots__ = ("_size", "_uploads", "counts")

    def __init__(self, uploads: Uploads, *, counts: bool) -> None:
        self._uploads = uploads
        self._size = 0
        self.counts = counts

    def grow(self, size: int) -> None:
        """Count this upload as ``size`` bytes in total; raise Overloaded if all uploads together have too many."""
        if self.counts and size > self._size:
            self._uploads.reserve(size - self._size)
            self._size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if self.counts:
            self._uploads.release(self._size)


class Body:
    """One body: written once, and read as often as needed, always from its first byte to its last."""

    __slots__ = ("_busy", "_chunks", "_discarded", "_disk", "_fd", "_memory", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._chunks: list[bytes] = []
        self._memory = 0
        self._disk = 0
        self._fd: int | None = None
        self._busy = 0
        self._discarded = False
        self.size = 0
        """Bytes that were written."""

    @property
    def in_memory(self) -> Sequence[bytes] | None:
        """All its pieces; None if it is in a file."""
        return self._chunks if self._fd is None else None

    def reserve(self, size: int) -> None:
        """Reserve room for ``size`` bytes in total; raise Overloaded if there is none."""
        if not self._disk and self._spool.take_memory(size - self._memory, large=size > SMALL_BYTES):
            self._memory = size
        else:
            self.reserve_disk(size)

    def reserve_disk(self, size: int) -> None:
        """Reserve room for ``size`` bytes in total in a file; raise Overloaded if there is none."""
        self._spool.take_disk(size - self._disk)
        self._disk = size

    async def write(self, *pieces: bytes) -> None:
        """Append; raise Overloaded if there is no room, or if the disk is full. If the body was discarded, write nothing."""
        if self._discarded:
            return
        size = self.size + sum(map(len, pieces))
        if size > max(self._memory, self._disk):
            self.reserve(size)
        if not self._disk:
            self._chunks += pieces
            self.size = size
            return
        await self._in_thread(self._append, pieces)
        if self._chunks:
            self._chunks.clear()
            self._spool.memory -= self._memory
            self._memory = 0
        self.size = size

    def _append(self, pieces: Sequence[bytes]) -> None:
        if self._fd is None:
            self._fd = self._spool.open_file()
        offset = 0 if self._chunks else self.size
        for piece in (*self._chunks, *pieces):
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]

    async def read(self, offset: int, size: int = PIECE_BYTES) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on."""
        data = await self._in_thread(self._read, offset, size)
        if not isinstance(data, bytes) or not data:
            raise Overloaded("a body cannot be read from the spool; send the call again later")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        if self._fd is None:
            return b""
        return os.pread(self._fd, size, offset)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the whole body, piece by piece."""
        if self._fd is None:
            for chunk in tuple(self._chunks):
                yield chunk
            return
        offset = 0
        while offset < self.size:
            piece = await self.read(offset, min(PIECE_BYTES, self.size - offset))
            offset += len(piece)
            yield piece

    async def _in_thread(self, work: object, *arguments: object) -> object:
        """Run one piece of work on the file. If the body is discarded during this work, its file is closed after it."""
        self._busy += 1
        try:
            return await asyncio.shield(self._finish(work, *arguments))
        except OSError as error:
            raise Overloaded(f"the spool of the gateway cannot be used: {error.strerror}; send the call again later") from error

    async def _finish(self, work: object, *arguments: object) -> object:
        try:
            return await self._spool.run(work, *arguments)
        finally:
            self._busy -= 1
            if self._discarded and not self._busy:
                self._close()

    def discard(self) -> None:
        """Release memory and disk. May be called more than once."""
        if self._discarded:
            return
        self._discarded = True
        if not self._busy:
            self._close()

    def _close(self) -> None:
        self._chunks.clear()
        self._spool.memory -= self._memory
        self._spool.disk -= self._disk
        self._memory = self._disk = 0
        if self._fd is not None:
            self._spool.close_file(self._fd)
            self._fd = None


class Backlog:
    """Bytes of an answer that the client has not taken yet: first in, first out, in memory or in the spool's files."""

    __slots__ = ("_body", "_discarded", "_pieces", "_putting", "_read", "_size", "_spool", "_written")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._body: Body | None = None
        self._putting = False
        self._discarded = False
        self._read = 0
        self._written = 0

    def __bool__(self) -> bool:
        """Tell whether anything is left to be sent."""
        return bool(self._pieces) or self._read < self._written

    def has_room(self, size: int) -> bool:
        """Tell whether there is room for ``size`` more bytes."""
        return self._spool.has_room(size, large=self._size + size > SMALL_BYTES)

    async def put(self, data: bytes) -> None:
        """Append. While a file has unread bytes, all new bytes go to this file, so that their order is kept."""
        if self._discarded:
            return
        size = self._size + len(data)
        if self._read == self._written and self._spool.take_memory(len(data), large=size > SMALL_BYTES):
            self._pieces.append(data)
            self._size = size
            return
        if self._body is None:
            self._body = Body(self._spool)
            self._read = self._written = 0
            self._body.reserve_disk(len(data))
        self._putting = True  # the file is in use, so ``get`` must not close it, even after reading all of it
        try:
            await self._body.write(data)
        finally:
            self._putting = False
        if not self._discarded:
            self._written += len(data)

    async def get(self) -> bytes:
        """Return the next bytes; call it only while there are some."""
        if self._pieces:
            piece = self._pieces.popleft()
            self._size -= len(piece)
            self._spool.memory -= len(piece)
            return piece
        if self._body is None:
            return b""
        piece = await self._body.read(self._read, min(PIECE_BYTES, self._written - self._read))
        self._read += len(piece)
        if self._read == self._written and not self._putting:
            self._drop_file()
        return piece

    def _drop_file(self) -> None:
        if self._body is not None:
            self._body.discard()
        self._body = None
        self._read = self._written = 0

    def discard(self) -> None:
        """Release memory and disk. Later calls of ``put`` are ignored."""
        self._discarded = True
        self._spool.memory -= self._size
        self._pieces.clear()
        self._size = 0
        self._drop_file()
