"""Answers to clients that read slowly: nothing overtakes what is spooled, and the end comes last."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from percore.gateway.call import Call
from percore.gateway.dispatch import Dispatcher
from percore.gateway.queue import CallQueue
from percore.gateway.spool import Spool, SpoolLimits


class Client:
    """A request. Its client takes the bytes that were sent when the test allows it."""

    def __init__(self) -> None:
        self.writable = True
        self.reads_on = asyncio.Event()
        self.sent: list[bytes] = []

    def head(self, *_: object) -> bytes:
        return b"head "

    def bodyless(self, _status: int) -> bool:
        return False

    def frame(self, data: bytes) -> bytes:
        return data

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def drained(self, _seconds: float) -> None:
        await self.reads_on.wait()

    def finish(self) -> None:
        self.sent.append(b"<end>")


class Answer:
    """A worker's connection: pieces of an answer, and whether the client looks ready when each of them comes."""

    def __init__(self, client: Client, *pieces: tuple[bytes, bool]) -> None:
        self.status, self.phrase, self.headers, self.buffered = 200, b"", list[Any](), 0
        self._client = client
        self._pieces = list(pieces)

    @property
    def complete(self) -> bool:
        return not self._pieces

    async def answer(self) -> None:
        return

    async def piece(self) -> bytes:
        await asyncio.sleep(0)
        data, self._client.writable = self._pieces.pop(0)
        return data


def sent_to_a_client(folder: Path, *pieces: tuple[bytes, bool]) -> tuple[list[bytes], list[bytes]]:
    """Return the bytes that a client got before it read on, and all bytes that it got."""

    async def work() -> tuple[list[bytes], list[bytes]]:
        client = Client()
        spool = Spool(folder, SpoolLimits(memory=1000, disk=1000))
        call = Call(client, spool.body(None), 1, 0, "id")
        dispatcher = Dispatcher(CallQueue(), spool, "here", run_seconds=100.0, answer_seconds=10.0)
        await dispatcher._pass_on(call, cast("Any", Answer(client, *pieces)))
        before = list(client.sent)
        client.reads_on.set()
        if call.delivery is not None:
            await call.delivery
        assert spool.memory == 0
        return before, client.sent

    return asyncio.run(asyncio.wait_for(work(), 20))


def test_a_client_that_keeps_up_gets_every_piece_at_once(tmp_path: Path) -> None:
    before, sent = sent_to_a_client(tmp_path, (b"a", True), (b"b", True))
    assert before == sent == [b"head ", b"a", b"b", b"<end>"]


def test_no_piece_overtakes_one_that_is_spooled_and_the_end_comes_last(tmp_path: Path) -> None:
    before, sent = sent_to_a_client(tmp_path, (b"a", True), (b"b", False), (b"c", True), (b"d", True))
    assert before == [b"head ", b"a"]
    assert sent == [b"head ", b"a", b"b", b"c", b"d", b"<end>"]
