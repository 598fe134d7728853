import socket

import pytest
from percore.exporter import backlog


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_connections_that_wait_to_be_accepted_are_counted(family: socket.AddressFamily, address: str) -> None:
    with socket.create_server((address, 0), family=family, backlog=8) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection((address, port)) for _ in range(3)]
        assert backlog.waiting(port) == 3
        listener.accept()[0].close()
        assert backlog.waiting(port) == 2
        for client in clients:
            client.close()


def test_only_listening_sockets_of_the_port_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        client = socket.create_connection(other.getsockname())
        served = other.accept()[0]
        client.sendall(b"unread")
        late = socket.create_connection(other.getsockname())
        assert backlog.waiting(one.getsockname()[1]) == 0
        assert backlog.waiting(other.getsockname()[1]) == 1
        for each in (client, served, late):
            each.close()
