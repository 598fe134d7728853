"""Receivers of webhooks for tests: real servers on loopback. Some are well-behaved, and others are not."""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import create_server, socket

DRIP_SECONDS = 0.05
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class Receiver:
    """A receiver, and all it has received."""

    port: int = 0
    requests: list[Received] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    """Status, headers and body of the next answers; then 204."""
    connections: int = 0
    may_answer: threading.Event = field(default_factory=threading.Event)
    """While it is not set, no request is answered. It is set at first."""

    def __post_init__(self) -> None:
        self.may_answer.set()


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run an HTTP or HTTPS server."""
    known = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            known.requests.append(Received(self.path, headers, body))
            known.may_answer.wait(60)
            status, more, content = known.answers.pop(0) if known.answers else (204, {}, b"")
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            known.requests.append(Received(self.path, {}, b""))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[socket, object]:
            connection, address = super().get_request()
            known.connections += 1
            return connection, address

        def handle_error(self, request: object, client_address: object) -> None:
            """Log no errors of clients that disconnect."""

    with Server(("127.0.0.1", 0), Handler) as server:
        known.port = server.server_port
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield known
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw_server(serve: Callable[[socket], None]) -> Iterator[int]:
    """Run a server that calls ``serve`` with each connection; yield its port."""
    with create_server(("127.0.0.1", 0)) as listener:

        def one(connection: socket) -> None:
            with connection, contextlib.suppress(OSError):  # the client may have closed it
                serve(connection)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(2)


def drip(connection: socket, content: bytes) -> None:
    """Send byte by byte, and then nothing."""
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(DRIP_SECONDS)
    time.sleep(3)


@dataclass(frozen=True)
class Certificate:
    """A certificate for a name, signed by an authority of its own."""

    file: Path
    context: ssl.SSLContext


def certificate(folder: Path, name: str) -> Certificate:
    """Make a certificate for a DNS name or an IP address."""
    kind = "IP" if name[0].isdigit() else "DNS"
    key, file = folder / f"{name}.key", folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={kind}:{name}", "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    return Certificate(file, context)
