"""Move files from a store to a folder: several ranges at a time, resumed after a cut, hashed while they come.

A file is fetched in parts. A journal says which parts are on disk, so that the next process, such as the next start of an init
container, fetches only what is missing. Nothing of a file is kept in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from percore.errors import LoadError
from percore.fetch.object_store import Remote, is_final, open_stream, reason
from percore.fetch.progress import Progress

logger = logging.getLogger("percore.fetch")
T = TypeVar("T")

PART_BYTES = 8 << 20
HASH_BYTES = 1 << 18
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


async def retry(
    attempt: Callable[[], Awaitable[T]], progress: Progress | None = None, moved: Callable[[], int] = lambda: 0
) -> T:
    """Call ``attempt`` until it succeeds, and return its result. Raises its error if another attempt would fail too.

    The load timeout cancels it. Pauses grow from 0.2 to 15 seconds, and are short again after an attempt that ``moved`` bytes.
    """
    pause, before = FIRST_PAUSE, moved()
    while True:
        try:
            return await attempt()
        except LoadError:
            raise
        except Exception as error:
            if is_final(error) or (isinstance(error, OSError) and not isinstance(error, (ConnectionError, TimeoutError))):
                raise
            if progress is not None:
                progress.fail(reason(error))
            else:
                logger.warning("trying again: %s", reason(error))
        if moved() > before:
            pause, before = FIRST_PAUSE, moved()
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - it spreads attempts
        pause = min(2 * pause, LONGEST_PAUSE)


class Journal:
    """Which parts are on disk. Valid for the same files, and until the machine restarts, because a crash may lose writes."""

    def __init__(self, path: Path, remotes: Iterable[Remote]) -> None:
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        self.parts: dict[str, set[int]] = {}
        """Numbers of the parts that are on disk, by path."""
        head = hashlib.sha256(json.dumps([boot, PART_BYTES, *map(repr, remotes)]).encode()).hexdigest()
        self.resumes = self._read(path, head)
        """Whether the folder has parts of the same files from an earlier attempt."""
        self._file = path.open("a" if self.resumes else "w", buffering=1)
        if not self.resumes:
            self._file.write(f"{json.dumps(head)}\n")

    def _read(self, path: Path, head: str) -> bool:
        try:
            lines = path.read_text().splitlines()
            if not lines or json.loads(lines[0]) != head:
                return False
            for line in lines[1:]:
                name, part = json.loads(line)
                self.parts.setdefault(name, set()).add(part)
        except FileNotFoundError:
            return False
        except ValueError:  # the last line was cut
            pass
        return True

    def add(self, path: str, part: int) -> None:
        """Take in a part that is on disk."""
        self._file.write(f"{json.dumps([path, part])}\n")

    def close(self) -> None:
        """Close its file."""
        self._file.close()


class _File:
    """One file that is fetched."""

    def __init__(self, remote: Remote, path: Path, done: set[int]) -> None:
        self.remote = remote
        self.tag = ""
        """The tag in the first answer. The list of the store may have another one."""
        self.done = done
        self.parts = max(1, -(-remote.size // PART_BYTES)) if remote.ranged else 1
        self.hash = hashlib.sha256()
        self._next = 0
        self._hashing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if remote.size and os.fstat(self.descriptor).st_size != remote.size:
            os.posix_fallocate(self.descriptor, 0, remote.size)

    def bounds(self, part: int) -> tuple[int, int]:
        if not self.remote.ranged:
            return 0, self.remote.size
        return part * PART_BYTES, min((part + 1) * PART_BYTES, self.remote.size)

    def write(self, piece: Any, at: int) -> None:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.descriptor, view, at)
            view, at = view[written:], at + written

    async def advance(self) -> bool:
        """Hash the parts on disk up to the first gap. After the last part, close the file and return True."""
        if self._hashing:
            return False
        self._hashing = True
        while self._next in self.done:
            await asyncio.to_thread(self._hash_part, self._next)
            self._next += 1
        self._hashing = False
        if self._next < self.parts:
            return False
        os.close(self.descriptor)
        return True

    def _hash_part(self, part: int) -> None:
        at, end = self.bounds(part)
        buffer = memoryview(bytearray(HASH_BYTES))
        while at < end and (read := os.preadv(self.descriptor, [buffer[: end - at]], at)):
            self.hash.update(buffer[:read])
            at += read


class Transfer:
    """One fetch of several files."""

    def __init__(self, store: Any, folder: Path, journal: Journal, progress: Progress, connections: int) -> None:
        self._store = store
        self._folder = folder
        self._journal = journal
        self._progress = progress
        self._connections = connections
        self._digests: dict[str, str] = {}

    async def run(self, remotes: Iterable[Remote]) -> dict[str, str]:
        """Fetch all files; return the SHA-256 of each by its path. Raises LoadError, or what the store or the disk raises."""
        jobs = self._jobs(remotes)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._connections):
                    group.create_task(self._work(jobs))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return self._digests

    def _jobs(self, remotes: Iterable[Remote]) -> Iterator[tuple[_File, int | None]]:
        """Yield what is to be fetched; None instead of a part if all of the file is on disk."""
        for remote in remotes:
            file = _File(remote, self._folder / remote.path, self._journal.parts.get(remote.path, set()))
            missing = [part for part in range(file.parts) if part not in file.done]
            self._progress.resume(sum(end - start for start, end in map(file.bounds, file.done)))
            yield from ((file, part) for part in missing or (None,))

    async def _work(self, jobs: Iterator[tuple[_File, int | None]]) -> None:
        for file, part in jobs:
            if part is not None:
                await self._fetch(file, part)
                file.done.add(part)
                self._journal.add(file.remote.path, part)
            if await file.advance():
                self._digests[file.remote.path] = file.hash.hexdigest()

    async def _fetch(self, file: _File, part: int) -> None:
        start, end = file.bounds(part)
        at = start

        async def attempt() -> None:
            nonlocal at
            if not file.remote.ranged:
                self._progress.done -= at - start
                at = start
            tag, size, pieces = await open_stream(self._store, file.remote, at, end)
            file.tag = file.tag or tag
            if (tag, size) != (file.tag, file.remote.size):
                raise LoadError(f"{file.remote.path} changed while it was fetched")
            async for piece in pieces:
                file.write(piece, at)  # to the page cache; a thread for each piece costs more than it saves
                at += len(piece)
                self._progress.done += len(piece)
            if at != end:
                raise ConnectionError("the server closed the connection early")

        if start < end:
            await retry(attempt, self._progress, lambda: at)
