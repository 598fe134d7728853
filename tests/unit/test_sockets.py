"""Socket options: every port notices a peer that vanished. If the kernel lacks an option, the service runs without it."""

from __future__ import annotations

import errno
import logging
import socket

import pytest
from percore import sockets, supervisor
from percore.gateway import cluster, upstream
from percore.http import front
from percore.worker import arbiter

FORGETS_SECONDS = 350
"""AWS load balancers forget an idle connection after this time."""


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_logged", set())


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of options that the kernel does not have."""
    missing: set[str] = set()
    has = socket.socket.setsockopt

    def setsockopt(self: socket.socket, level: int, option: int, value: int | bytes) -> None:
        if option in {getattr(socket, name) for name in missing if name.startswith("SO_") == (level == socket.SOL_SOCKET)}:
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        has(self, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    return missing


def accepted(listener: socket.socket) -> socket.socket:
    with socket.create_connection(listener.getsockname()):
        return listener.accept()[0]


@pytest.mark.parametrize(
    ("options", "most"),
    [
        pytest.param(front.OPTIONS, 60, id="gateway and status servers"),
        pytest.param(arbiter.KEEPALIVE, 15, id="worker"),
        pytest.param(upstream.OPTIONS, 30, id="to workers"),
        pytest.param(cluster.OPTIONS, 30, id="to the API server"),
    ],
)
def test_a_silent_peer_is_probed_soon_enough_for_load_balancers_and_a_dead_one_is_noticed(
    options: tuple[sockets.Option, ...], most: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert len(sockets.set_options(listener, options)) == len(options)
        with accepted(listener) as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
            assert idle + interval * count <= most
            assert idle < FORGETS_SECONDS / 2


@pytest.mark.parametrize("options", [front.OPTIONS, arbiter.KEEPALIVE])
def test_a_slow_reader_of_an_answer_does_not_count_as_dead(options: tuple[sockets.Option, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets.set_options(listener, options)
        with accepted(listener) as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_callers_that_connect_before_the_gateway_accepts_are_probed_too() -> None:
    with supervisor.listen("127.0.0.1", 0, "PERCORE_PORT") as listener, accepted(listener) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < FORGETS_SECONDS / 2


def test_an_option_that_the_kernel_does_not_have_is_left_out_and_said_once(
    without: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    without |= {"TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT", "SO_REUSEADDR"}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with front.bind("127.0.0.1", 0, "PERCORE_PORT") as listener:
                listener.listen()
                with accepted(listener) as connection:
                    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "TCP_KEEPIDLE (" in said[1]


def test_an_option_that_the_platform_has_no_name_for_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets.set_options(listener, arbiter.KEEPALIVE)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_client_of_kubernetes_gets_only_options_that_the_kernel_has(without: set[str]) -> None:
    without |= {"TCP_KEEPIDLE"}
    numbers = [option for _, option, _ in sockets.usable(cluster.OPTIONS)]
    assert socket.TCP_KEEPINTVL in numbers
    assert socket.TCP_KEEPIDLE not in numbers
