"""The spool: bounds for all bodies together, in memory and in files."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from percore.errors import BodyTimeout, BodyTooLarge, Overloaded
from percore.gateway.spool import SMALL_BYTES, Backlog, Body, Spool, SpoolLimits


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def on_loop(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


async def content(body: Body) -> bytes:
    return b"".join([piece async for piece in body.pieces()])


def test_small_bodies_stay_in_memory_until_its_bound_and_then_go_to_files(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=1000, disk=10_000))
        first, second = spool.body(600), spool.body(600)
        for body, text in ((first, b"a"), (second, b"b")):
            await body.write(text * 600)
        assert (spool.memory, spool.disk) == (600, 600)
        assert (first.in_memory is None, second.in_memory is None) == (False, True)
        assert await content(first) == b"a" * 600
        assert await content(second) == b"b" * 600
        for body in (first, second):
            body.discard()
            body.discard()
        assert (spool.memory, spool.disk) == (0, 0)
        assert list(tmp_path.iterdir()) == []

    on_loop(work)


def test_large_bodies_get_half_of_the_memory_and_small_ones_all_of_it(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=200_000, disk=1 << 20))
        large, second, small = spool.body(90_000), spool.body(90_000), spool.body(60_000)
        assert (spool.memory, spool.disk) == (150_000, 90_000)
        for body in (large, second, small):
            await body.write(bytes(60_000))
        assert [body.in_memory is None for body in (large, second, small)] == [False, True, False]

    on_loop(work)


def test_a_body_of_unknown_size_moves_to_a_file_when_it_is_no_longer_small(tmp_path: Path) -> None:
    async def work() -> None:
        before = open_files()
        spool = Spool(tmp_path, SpoolLimits(memory=100_000, disk=1 << 20))
        body = spool.body(None)
        pieces = [bytes([number]) * 30_000 for number in range(10)]
        for piece in pieces:
            await body.write(piece)
        assert (spool.memory, spool.disk) == (0, 300_000)
        assert await content(body) == b"".join(pieces)
        assert await content(body) == b"".join(pieces), "a call that is sent again is read again"
        body.discard()
        await spool.run(lambda: None)
        await asyncio.sleep(0.1)
        assert (spool.memory, spool.disk) == (0, 0)
        assert open_files() <= before + 5

    on_loop(work)


def test_a_full_spool_says_so_and_gives_the_room_back(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=0, disk=100))
        held = spool.body(80)
        with pytest.raises(Overloaded, match="spool of the gateway is full"):
            spool.body(21)
        held.discard()
        spool.body(100).discard()
        growing = spool.body(None)
        with pytest.raises(Overloaded):
            await growing.write(b"x" * 101)
        growing.discard()
        assert (spool.memory, spool.disk) == (0, 0)

    on_loop(work)


def test_a_folder_that_cannot_be_written_is_overload_and_no_crash(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path / "missing", SpoolLimits(memory=0, disk=1000))
        body = spool.body(10)
        with pytest.raises(Overloaded, match="cannot be used: No such file"):
            await body.write(b"0123456789")
        body.discard()
        assert spool.disk == 0

    on_loop(work)


def test_a_body_that_is_discarded_during_a_write_closes_its_file_afterwards(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=0, disk=1 << 30))
        body = spool.body(8 << 20)
        writing = asyncio.create_task(body.write(b"x" * (8 << 20)))
        await asyncio.sleep(0)
        writing.cancel()
        body.discard()
        with pytest.raises(asyncio.CancelledError):
            await writing
        for _ in range(100):
            if spool.disk == 0:
                break
            await asyncio.sleep(0.02)
        assert spool.disk == 0

    on_loop(work)


def test_a_backlog_is_first_in_first_out_through_memory_and_file(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=128_000, disk=10 << 20))
        backlog = Backlog(spool)
        sent = [bytes([number]) * 20_000 for number in range(20)]
        taken, in_files = b"", 0
        for number, piece in enumerate(sent):
            await backlog.put(piece)
            in_files = max(in_files, spool.disk)
            if number % 5 == 4:
                taken += await backlog.get()
        assert in_files > 0
        assert spool.memory <= SMALL_BYTES
        while backlog:
            taken += await backlog.get()
        assert taken == b"".join(sent)
        assert (spool.memory, spool.disk) == (0, 0)

    on_loop(work)


def test_a_backlog_that_is_read_while_it_is_written_loses_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=100_000, disk=100 << 20))
        backlog = Backlog(spool)
        sent = [bytes([number % 251]) * 70_000 for number in range(300)]
        taken: list[bytes] = []

        async def read() -> None:
            while sum(map(len, taken)) < 300 * 70_000:
                if backlog:
                    taken.append(await backlog.get())
                else:
                    await asyncio.sleep(0)

        reader = asyncio.create_task(read())
        for piece in sent:
            await backlog.put(piece)
        await reader
        assert b"".join(taken) == b"".join(sent)
        backlog.discard()
        assert (spool.memory, spool.disk) == (0, 0)

    on_loop(work)


# --- receiving


class Sent:
    """A request whose body arrives piece by piece, or does not arrive to its end."""

    def __init__(self, *pieces: bytes, length: int | None = None, complete: bool = True) -> None:
        self.content_length = length
        self.complete = complete
        self._pieces = list(pieces)

    async def read(self) -> list[bytes]:
        if not self._pieces and not self.complete:
            await asyncio.Event().wait()
        return [self._pieces.pop(0)] if self._pieces else []


def test_a_body_is_received_whole(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=1000, disk=1000, body_bytes=6))
        body = await spool.receive(Sent(b"abc", b"def"))
        assert await content(body) == b"abcdef"
        assert (spool.memory, spool.uploads.count) == (6, 0)

    on_loop(work)


def test_a_body_that_is_too_large_leaves_no_room_taken(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=1000, disk=1000, body_bytes=5))
        with pytest.raises(BodyTooLarge, match="at most 5 bytes"):
            await spool.receive(Sent(b"abc", b"def"))
        assert (spool.memory, spool.uploads.count) == (0, 0)

    on_loop(work)


def test_a_body_that_does_not_arrive_in_time_leaves_no_room_taken(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=1000, disk=1000, body_seconds=0.01))
        with pytest.raises(BodyTimeout, match=r"within 0\.01 s"):
            await spool.receive(Sent(b"abc", length=6, complete=False))
        assert (spool.memory, spool.uploads.count) == (0, 0)

    on_loop(work)


def test_large_bodies_that_are_received_keep_out_another_large_one_and_no_small_one(tmp_path: Path) -> None:
    async def work() -> None:
        spool = Spool(tmp_path, SpoolLimits(memory=1 << 20, disk=1 << 20, uploads=1))
        slow = asyncio.ensure_future(spool.receive(Sent(b"a", complete=False)))
        await asyncio.sleep(0)
        assert spool.uploads.count == 1
        with pytest.raises(Overloaded, match="1 large bodies are being received"):
            await spool.receive(Sent(b"b"))
        assert (await spool.receive(Sent(b"c", length=1))).size == 1
        slow.cancel()
        await asyncio.wait([slow])
        assert spool.uploads.count == 0

    on_loop(work)
