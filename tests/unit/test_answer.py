import socket
import threading
import time

import pytest
from percore.errors import NotFound
from percore.worker import answer
from percore.worker.receive import Buffer


def read_all(client: socket.socket) -> bytes:
    client.settimeout(5)
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_many_chunks_go_out_in_order_and_whole() -> None:
    client, served = socket.socketpair()
    chunks: list[Buffer] = [b"head", b"", memoryview(b"x" * 500_000), *(bytes([number]) for number in range(200))]
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_all(client)))
    reader.start()
    with served:
        sent = answer.send(served, chunks, seconds=5)
    reader.join()
    client.close()
    assert received == [b"".join(bytes(chunk) for chunk in chunks)]
    assert sent == len(received[0])


def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    client, served = socket.socketpair()
    began = time.monotonic()
    with client, served, pytest.raises(answer.Undelivered) as caught:
        answer.finish(served, [b"x" * 50_000_000], seconds=0.3, unread=False)
    assert served.fileno() == -1
    assert 0 < caught.value.sent < 50_000_000
    assert time.monotonic() - began < 2.0


def test_an_answer_is_not_lost_if_a_part_of_the_request_was_never_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served = listener.accept()[0]
    with client:
        client.sendall(b"x" * 100_000)
        answer.finish(served, answer.error_answer(NotFound("no")), seconds=1, unread=True)
        assert read_all(client).startswith(b"HTTP/1.1 404 ")


def test_an_answer_is_not_lost_if_bytes_follow_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served = listener.accept()[0]
    with client:
        client.sendall(b"\r\n")
        time.sleep(0.05)
        sender = threading.Thread(target=lambda: answer.finish(served, [b"x" * 2_000_000], seconds=5, unread=False))
        sender.start()
        received = read_all(client)
        sender.join()
    assert len(received) == 2_000_000


def test_without_a_free_helper_thread_a_connection_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MOST_HELPERS", 0)
    client, served = socket.socketpair()
    answer.finish(served, [], seconds=1, unread=True)
    with client:
        assert read_all(client) == b""
