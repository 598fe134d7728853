import math
import socket

import pytest
from percore.worker.receive import peer_is_gone
from percore.worker.watchdog import Deadline, Watchdog, should_end


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_deadline_expires_once_and_not_before_its_time() -> None:
    clock, expired = Clock(), []
    watchdog = Watchdog(clock=clock)
    watchdog.arm(Deadline(10.0, on_expired=lambda: expired.append(clock.now)))
    for now in (9.9, 10.0, 11.0):
        clock.now = now
        watchdog.check()
    assert expired == [10.0]


def test_a_disarmed_deadline_neither_expires_nor_asks_for_the_client() -> None:
    clock = Clock()
    seen: list[str] = []

    def is_gone() -> bool:
        seen.append("asked")
        return True

    watchdog = Watchdog(clock=clock)
    watchdog.arm(Deadline(10.0, on_expired=lambda: seen.append("expired"), is_disconnected=is_gone))
    watchdog.disarm()
    clock.now = 100.0
    watchdog.check()
    assert seen == []


def test_a_client_disconnect_is_reported_with_the_seconds_left_until_the_callback_returns_true() -> None:
    clock, reported = Clock(), []

    def on_disconnect(left: float) -> bool:
        reported.append(left)
        return len(reported) == 2

    watchdog = Watchdog(clock=clock)
    watchdog.arm(Deadline(10.0, on_expired=lambda: None, is_disconnected=lambda: True, on_disconnect=on_disconnect))
    for now in (1.0, 2.0, 3.0):
        clock.now = now
        watchdog.check()
    assert reported == [9.0, 8.0]


def test_a_report_that_fails_does_not_end_the_watchdog() -> None:
    clock = Clock()
    expired: list[float] = []

    def broken() -> None:
        raise OSError("no status server")

    watchdog = Watchdog(on_tick=broken, clock=clock)
    watchdog.tick()
    watchdog.arm(Deadline(1.0, on_expired=lambda: expired.append(clock.now)))
    clock.now = 2.0
    watchdog.tick()
    assert expired == [2.0]


@pytest.mark.parametrize(
    ("policy", "left", "load", "expected"),
    [
        ("end", 0.1, 60.0, True),
        ("finish", math.inf, 1.0, False),
        ("end-if-worthwhile", 61.0, 60.0, True),
        ("end-if-worthwhile", 59.0, 60.0, False),
    ],
)
def test_whether_a_disconnected_call_ends_its_worker(policy: str, left: float, load: float, expected: bool) -> None:
    assert should_end(policy, left, load) is expected


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


def test_a_peer_that_waits_does_not_count_as_disconnected_even_with_unread_data() -> None:
    client, served = connected()
    with client, served:
        assert not peer_is_gone(served)
        client.sendall(b"more")
        assert not peer_is_gone(served)


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_a_peer_that_closed_half_closed_or_reset_is_gone(how: str) -> None:
    client, served = connected()
    with client, served:
        if how == "half-close":
            client.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        assert peer_is_gone(served)
