"""Peers that die without a word, as far as the options of the sockets tell."""

import socket

import pytest
from percore.worker import peers


def accepted(listener: socket.socket) -> socket.socket:
    with socket.create_connection(listener.getsockname()):
        return listener.accept()[0]


def test_what_is_accepted_is_probed_and_its_dead_peer_is_noticed_within_15_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peers.keep_alive(listener)
        with accepted(listener) as connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            of = {name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for _, name, _ in peers.OPTIONS[1:]}
            assert of["TCP_KEEPIDLE"] + of["TCP_KEEPINTVL"] * of["TCP_KEEPCNT"] <= 15
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0  # or a slow reader is cut off


def test_a_platform_without_the_options_is_served_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peers.keep_alive(listener)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    with socket.socket(socket.AF_UNIX) as other:
        peers.keep_alive(other)
