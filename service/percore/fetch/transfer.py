"""Fetch files from a store to a folder: several parts at a time, resumed after an error, hashed while they arrive.

A file is fetched in parts, each by one of several threads. A journal lists the parts that are on disk. So the next process,
such as the next start of an init container, fetches only the missing parts. No part of a file is kept in memory.

It uses threads, because asyncio needs twice as much processor time for each byte. A thread that waits for a server cannot be
ended. So they are daemon threads, and after an error or a timeout the process ends without waiting for them.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from percore.errors import LoadError
from percore.fetch.object_store import Remote, StoreError, open_stream
from percore.fetch.progress import Progress

T = TypeVar("T")

SMALLEST_PART, LARGEST_PART = 8 << 20, 64 << 20
PARTS = 64
"""How many parts a file has, if the bounds of a part allow it. Fewer parts cost less time for requests. But with too few parts,
connections would be idle while the last parts are fetched."""
HASH_BYTES = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Stopped(Exception):
    """The fetch has ended, by its timeout or by an error of another thread."""


def retry(attempt: Callable[[], T], progress: Progress, stop: threading.Event, moved: Callable[[], int] = lambda: 0) -> T:
    """Call ``attempt`` until it succeeds, and return its result.

    Raises the StoreError of an attempt if it is final, and Stopped after ``stop``. Pauses grow from 0.2 to 15 s. If an attempt
    has moved bytes, they begin at 0.2 s again.
    """
    pause, before = FIRST_PAUSE, moved()
    while True:
        try:
            return attempt()
        except StoreError as error:
            if error.final:
                raise
            progress.note_retry(str(error))
        if moved() > before:
            pause, before = FIRST_PAUSE, moved()
        if stop.wait(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - it spreads attempts
            raise Stopped
        pause = min(2 * pause, LONGEST_PAUSE)


class Journal:
    """Lists the parts that are on disk.

    It is valid only for the same files, and only until the machine restarts, because a crash may lose writes.
    """

    def __init__(self, path: Path, remotes: Iterable[Remote]) -> None:
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        self.parts: dict[str, set[int]] = {}
        """Numbers of the parts that are on disk, by path."""
        head = hashlib.sha256(json.dumps([boot, SMALLEST_PART, LARGEST_PART, *map(repr, remotes)]).encode()).hexdigest()
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
        except ValueError:  # the last line is not complete
            pass
        return True

    def add(self, path: str, part: int) -> None:
        """Add a part that is on disk."""
        self._file.write(f"{json.dumps([path, part])}\n")

    def close(self) -> None:
        """Close its file."""
        self._file.close()


class _File:
    """One file that is fetched."""

    def __init__(self, remote: Remote, path: Path, done: set[int]) -> None:
        self.remote = remote
        self.tag = ""
        """The tag in the first answer. The store may give another tag in its list of files."""
        self.done = done
        self.part_bytes = min(max(remote.size // PARTS, SMALLEST_PART), LARGEST_PART) if remote.ranged else remote.size
        self.parts = max(1, -(-remote.size // self.part_bytes)) if remote.size else 1
        self.hash = hashlib.sha256()
        self.next = 0
        """The next part to hash."""
        self.hashing = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        if self.parts > 1 and os.fstat(self.descriptor).st_size != remote.size:
            os.posix_fallocate(self.descriptor, 0, remote.size)

    def bounds(self, part: int) -> tuple[int, int]:
        return part * self.part_bytes, min((part + 1) * self.part_bytes, self.remote.size)

    def write(self, piece: bytes, at: int) -> None:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.descriptor, view, at)
            view, at = view[written:], at + written

    def hash_part(self, part: int) -> None:
        at, end = self.bounds(part)
        buffer = memoryview(bytearray(min(HASH_BYTES, end - at)))
        while at < end and (read := os.preadv(self.descriptor, [buffer[: end - at]], at)):
            self.hash.update(buffer[:read])
            at += read


class Transfer:
    """One fetch of several files."""

    def __init__(self, store: Any, folder: Path, journal: Journal, progress: Progress, stop: threading.Event) -> None:
        self._store = store
        self._folder = folder
        self._journal = journal
        self._progress = progress
        self._stop = stop
        self._lock = threading.Lock()
        """Protects the jobs, the journal, and the sets of parts of each file."""
        self._digests: dict[str, str] = {}

    def run(self, remotes: Iterable[Remote], connections: int) -> dict[str, str]:
        """Fetch all files; return the SHA-256 of each by its path. Raises the first error: LoadError, StoreError, OSError."""
        jobs = self._jobs(remotes)
        ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self._work(jobs)
                ends.put(None)
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                ends.put(error)

        for _ in range(connections):
            threading.Thread(target=work, daemon=True).start()
        for _ in range(connections):
            error = ends.get()
            if error is not None:
                self._stop.set()
                raise error
        return self._digests

    def _jobs(self, remotes: Iterable[Remote]) -> Iterator[tuple[_File, int | None]]:
        """Yield the missing parts of each file. If the whole file is on disk, yield the file with None instead of a part."""
        for remote in remotes:
            file = _File(remote, self._folder / remote.path, self._journal.parts.get(remote.path, set()))
            missing = [part for part in range(file.parts) if part not in file.done]
            self._progress.resume(sum(end - start for start, end in map(file.bounds, file.done)))
            yield from ((file, part) for part in missing or (None,))

    def _work(self, jobs: Iterator[tuple[_File, int | None]]) -> None:
        while True:
            with self._lock:
                job = next(jobs, None)
            if job is None:
                return
            file, part = job
            if part is not None:
                self._fetch(file, part)
                with self._lock:
                    file.done.add(part)
                    self._journal.add(file.remote.path, part)
            self._hash(file)

    def _hash(self, file: _File) -> None:
        """Hash the parts on disk up to the first missing one, and close the file after its last part.

        If another thread already hashes this file, return at once.
        """
        with self._lock:
            if file.hashing:
                return
            file.hashing = True
        while True:
            with self._lock:
                if file.next not in file.done:
                    complete = file.hashing = file.next == file.parts  # so that no other thread completes it again
                    break
            file.hash_part(file.next)
            file.next += 1
        if complete:
            os.close(file.descriptor)
            self._digests[file.remote.path] = file.hash.hexdigest()

    def _fetch(self, file: _File, part: int) -> None:
        start, end = file.bounds(part)
        at = start

        def attempt() -> None:
            nonlocal at
            if not file.remote.ranged:
                self._progress.add(start - at)
                at = start
            tag, size, pieces = open_stream(self._store, file.remote, at, end)
            file.tag = file.tag or tag
            if (tag, size) != (file.tag, file.remote.size):
                raise LoadError(f"{file.remote.path} changed while it was fetched")
            for piece in pieces:
                if self._stop.is_set():
                    raise Stopped
                file.write(piece, at)
                at += len(piece)
                self._progress.add(len(piece))
            if at != end:
                raise StoreError("the server closed the connection early")

        if start < end:
            retry(attempt, self._progress, self._stop, lambda: at)
