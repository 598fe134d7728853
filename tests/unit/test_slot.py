"""Real sockets on the loopback interface: what the kernel does is what counts."""

from __future__ import annotations

import contextlib
import socket

import pytest
from percore.worker.slot import close_slot, keep_out, open_slot

PLACES = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")]


def bound(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if address == "::":
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, 0))
    return listener


def knock(listener: socket.socket, address: str) -> str:
    """Connect, and return what came of it."""
    try:
        with socket.create_connection((address, listener.getsockname()[1]), timeout=0.2):
            return "in"
    except TimeoutError:
        return "ignored"
    except ConnectionRefusedError:
        return "refused"


@pytest.mark.parametrize(("at", "to"), PLACES)
def test_a_slot_is_open_then_ignores_newcomers_then_refuses_them_and_opens_again(at: str, to: str) -> None:
    with bound(at) as listener:
        open_slot(listener)
        assert knock(listener, to) == "in"
        keep_out(listener)
        assert knock(listener, to) == "ignored"
        close_slot(listener)
        assert knock(listener, to) == "refused"
        open_slot(listener)
        assert knock(listener, to) == "in"


def test_the_call_that_is_in_is_heard_while_others_are_kept_out() -> None:
    with bound("127.0.0.1") as listener:
        open_slot(listener)
        with socket.create_connection(listener.getsockname(), timeout=5) as caller:
            taken, _ = listener.accept()
            keep_out(listener)
            with contextlib.closing(taken):
                taken.settimeout(5)
                caller.sendall(b"call")
                assert taken.recv(4) == b"call"
