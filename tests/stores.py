"""Servers that models are fetched from: S3 by rclone, Azure by azurite, Google's by fake-gcs-server, and https with faults."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

from harness.service import ROOT, eventually, free_port

RCLONE = str(Path(sys.executable).parent / "rclone")
KEY, SECRET = "rclones-own-key", "rclones-own-secret"
REGION = "us-east-1"


AZURITE = Path(os.environ.get("NODE_PATH") or ROOT / "build/node/node_modules") / "azurite/dist/src/blob/main.js"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""azurite's own, which everybody knows."""
FAKE_GCS = shutil.which("fake-gcs-server", path=f"{ROOT / 'build/bin'}:{os.environ['PATH']}")


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve the folders in ``folder`` as buckets; yield the address, and the environment with its credentials."""
    port = free_port()
    command = [
        RCLONE,
        "serve",
        "s3",
        "--config",
        "",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEY},{SECRET}",
        str(folder),
    ]
    with _server(command, port) as address:
        yield address, {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Do the same for Azure: copy the folders to its containers."""
    port = free_port()
    command = ["node", str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _server([*command, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"], port) as address:
        endpoint = f"{address}/{AZURE_ACCOUNT}"
        remote = f':azureblob,account={AZURE_ACCOUNT},key="{AZURE_KEY}",endpoint="{endpoint}":'
        subprocess.run([RCLONE, "copy", "--config", "", str(folder), remote], check=True, capture_output=True)
        yield endpoint, {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}


@contextlib.contextmanager
def google(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The same for Google Cloud Storage. It asks for no credentials."""
    port = free_port()
    command = [str(FAKE_GCS), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    own = ["-public-host", f"127.0.0.1:{port}", "-backend", "memory", "-data", str(folder)]
    with _server([*command, *own], port) as address:
        yield address, {"FETCH_ANONYMOUS": "yes"}


@contextlib.contextmanager
def _server(command: list[str], port: int) -> Iterator[str]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(port), 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Site:
    """An https server with a CA of its own and one file. Tests set its faults."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.content = content
        self.ca = folder / "ca.pem"
        self.ranged = True
        """Whether it can send a part of the file."""
        self.status = 0
        """The status that it answers instead of the file."""
        self.cuts: list[int] = []
        """At each of these numbers of bytes, counted over all answers, it closes the connection, once for each number."""
        self.rate = 0
        """Bytes a second on each connection; 0: as fast as can be."""
        self.tag = '"one"'
        self.ranges: list[str] = []
        """The range of each request."""
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.sent = 0
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # clients that go away are part of the tests

            def finish_request(self, request: socket.socket, address: object) -> None:  # type: ignore[override]
                with context.wrap_socket(request, server_side=True) as secured:
                    super().finish_request(secured, address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        self.paths.append(request.path)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.status:
            request.send_response(self.status)
            request.send_header("Content-Length", "6")
            request.end_headers()
            request.wfile.write(b"SECRET")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        start, end = 0, len(self.content)
        if asked and self.ranged:
            self.ranges.append(asked[0])
            start, end = int(asked[1]), min(int(asked[2]) + 1, end)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(end - start))
        request.send_header("ETag", self.tag)
        request.end_headers()
        piece = self.rate // 10 or 65536
        for at in range(start, end, piece):
            if self.cuts and self.sent >= self.cuts[0]:
                self.cuts.pop(0)
                request.close_connection = True
                request.connection.shutdown(socket.SHUT_RDWR)
                return
            part = self.content[at : min(at + piece, end)]
            request.wfile.write(part)
            self.sent += len(part)
            if self.rate:
                time.sleep(0.1)
