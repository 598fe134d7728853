import socket

from service.exporter import backlog


def test_connections_that_wait_to_be_accepted_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        port = listener.getsockname()[1]
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        assert backlog.waiting(port) == 3
        listener.accept()[0].close()
        assert backlog.waiting(port) == 2
        for client in clients:
            client.close()


def test_only_listening_sockets_of_the_port_count() -> None:
    listening = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000007 00:00000000 00000000 0 0 1 1 0"
    connected = "1: 0100007F:1F90 0100007F:9999 01 00000000:00000005 00:00000000 00000000 0 0 1 1 0"
    other = "2: 0100007F:2382 00000000:0000 0A 00000000:00000003 00:00000000 00000000 0 0 1 1 0"
    assert backlog.queued([listening, connected, other], 8080) == 7
