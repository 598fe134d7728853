"""Bodies and backlogs that are discarded while a thread writes to their file: the write ends, and nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from percore.errors import Overloaded
from percore.gateway.spool import THREADS, Backlog, Spool, SpoolLimits

MEMORY_BYTES, IN_MEMORY, MORE = 60_000, 50_000, 100_000
"""The bound of the memory, a size that fits into it, and a size that then goes to a file."""


def on_loop(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


class SlowSpool(Spool):
    """A spool whose disk takes a write only when the test allows it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, SpoolLimits(memory=MEMORY_BYTES, disk=1 << 20))
        self._begun = threading.Event()
        self.allowed = threading.Event()
        self.broken = False

    def open_file(self) -> int:
        fd = super().open_file()
        self._begun.set()
        assert self.allowed.wait(20)
        if self.broken:
            os.close(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fd

    async def write_has_begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, 20)

    async def threads_are_done(self) -> None:
        """Return when the threads have done all their work: then all of them meet at this barrier."""
        meeting = threading.Barrier(THREADS)
        await asyncio.gather(*(self.run(meeting.wait, 20) for _ in range(THREADS)))

    def open_files(self) -> list[str]:
        """Return the files of this spool that the process holds open. They have no name, but /proc tells their folder."""
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
                found.append(str(link.readlink()))
        return [name for name in found if name.startswith(f"{self.folder}/")]


@pytest.mark.parametrize("leaves", ["stays", "is cancelled"])
@pytest.mark.parametrize("in_memory", [0, IN_MEMORY])
def test_a_body_that_is_discarded_during_a_write_leaks_nothing(tmp_path: Path, leaves: str, in_memory: int) -> None:
    async def work() -> None:
        spool = SlowSpool(tmp_path)
        body = spool.body(None)
        if in_memory:
            await body.write(b"x" * in_memory)
        writing = asyncio.create_task(body.write(b"y" * MORE))
        await spool.write_has_begun()
        if leaves == "is cancelled":
            writing.cancel()
        body.discard()
        body.discard()
        # The write still has its file and its data, so they still count.
        assert (spool.memory, spool.disk) == (in_memory, in_memory + MORE)
        assert len(spool.open_files()) == 1
        spool.allowed.set()
        await asyncio.wait([writing], timeout=20)
        assert writing.cancelled() == (leaves == "is cancelled")
        if leaves == "stays":
            await writing
        # Twice: the loop learns that the write has ended, and then gives the threads the file to close.
        await spool.threads_are_done()
        await spool.threads_are_done()
        assert (spool.memory, spool.disk) == (0, 0)
        assert spool.open_files() == []

    on_loop(work)


def test_a_write_that_fails_after_its_body_was_discarded_leaks_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        spool = SlowSpool(tmp_path)
        spool.broken = True
        body = spool.body(None)
        writing = asyncio.create_task(body.write(b"y" * MORE))
        await spool.write_has_begun()
        body.discard()
        spool.allowed.set()
        with pytest.raises(Overloaded, match="cannot be used: Input/output error"):
            await writing
        assert (spool.memory, spool.disk) == (0, 0)
        assert spool.open_files() == []

    on_loop(work)


def test_a_backlog_that_is_discarded_during_a_write_leaks_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        spool = SlowSpool(tmp_path)
        backlog = Backlog(spool)
        await backlog.put(b"x" * IN_MEMORY)
        writing = asyncio.create_task(backlog.put(b"y" * MORE))
        await spool.write_has_begun()
        backlog.discard()
        spool.allowed.set()
        await writing
        await spool.threads_are_done()
        assert (spool.memory, spool.disk) == (0, 0)
        assert spool.open_files() == []

    on_loop(work)
