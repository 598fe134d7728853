"""Asking pods whether they compute: several at the same time, for a bounded time, with real status servers in every state."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from percore.gateway.endpoints import Endpoint
from percore.gateway.slots import THREADS, SlotReader, slot_is_taken


def endpoints(number: int) -> dict[str, Endpoint]:
    return {f"pod-{each}": Endpoint("10.0.0.1", 8080, 9090, pod=f"pod-{each}") for each in range(number)}


def test_answers_come_by_pod() -> None:
    slots = SlotReader(lambda endpoint: endpoint.pod == "pod-1")
    assert slots.ask(endpoints(3), 10) == {"pod-0": False, "pod-1": True, "pod-2": False}
    assert slots.ask({}, 10) == {}


def test_several_pods_are_asked_at_the_same_time_and_no_more_than_there_are_threads() -> None:
    all_ask, at_once, most = threading.Barrier(THREADS), [0], [0]
    lock = threading.Lock()

    def is_taken(_endpoint: Endpoint) -> bool:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        all_ask.wait(10)
        with lock:
            at_once[0] -= 1
        return False

    assert len(SlotReader(is_taken).ask(endpoints(5 * THREADS), 10)) == 5 * THREADS
    assert most == [THREADS]


def test_after_its_time_a_pod_that_does_not_answer_counts_as_taken_and_one_that_was_not_asked_is_left_out() -> None:
    goes_on = threading.Event()

    def is_taken(endpoint: Endpoint) -> bool:
        if endpoint.pod == "pod-1":
            goes_on.wait(10)
        return False

    slots = SlotReader(is_taken, threads=1)
    assert slots.ask(endpoints(3), 0.1) == {"pod-0": False, "pod-1": True}
    goes_on.set()
    # The late answer, and the questions that were withdrawn, are no part of the next answers.
    assert slots.ask(endpoints(1), 10) == {"pod-0": False}


@pytest.mark.parametrize(
    ("body", "taken"),
    [(b'{"slot":"taken"}', True), (b'{"slot":"free"}', False), (b"[]", True), (b"{}", True), (b"nonsense", True)],
)
def test_a_slot_is_free_only_if_the_status_server_says_so(body: bytes, taken: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/slot"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert slot_is_taken(Endpoint("127.0.0.1", 8080, server.server_address[1])) is taken
        thread.join()


def test_a_status_server_that_is_silent_counts_as_taken_after_two_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        assert slot_is_taken(Endpoint("127.0.0.1", 8080, listener.getsockname()[1]))
        assert 1.9 < time.monotonic() - began < 4


def test_a_pod_that_is_not_there_counts_as_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert slot_is_taken(Endpoint("127.0.0.1", 8080, port))
