"""``python -m tests.walk FOLDER``: serves one call, and prints the files of percore whose functions ran meanwhile, in order.

A real gateway and a real worker serve it in this process.

The model is a fake: TensorFlow is not needed.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from percore import logs, settings
from percore.api.app import create_app
from percore.gateway import gateway_settings
from percore.gateway.endpoints import Endpoint
from percore.gateway.gateway_metrics import GatewayMetrics
from percore.gateway.process import Gateway
from percore.model_metadata import Catalog, TensorSpec
from percore.worker.call_worker import CallWorker
from percore.worker.exchange import WorkerContext
from percore.worker.report import Reporter
from percore.worker.watchdog import Watchdog

from tests.exchanges import CONFIG
from tests.fakes import model

PACKAGE = str(Path(settings.__file__).parent) + "/"
BODY = b'{"inputs": [3.0]}'
CALL = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Files:
    """The files whose functions run, in order, while ``recording`` is set."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.recording = False

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Record the file of each function that begins, and the file of each function to which another one returns."""
        entered = frame if event == "call" else frame.f_back if event == "return" else None
        if self.recording and entered is not None:
            path = entered.f_code.co_filename
            if path.startswith(PACKAGE):
                name = path.removeprefix(PACKAGE).removesuffix(".py")
                if self.seen[-1:] != [name]:
                    self.seen.append(name)


def worker_at(path: Path, files: Files) -> None:
    """Serve calls at a unix socket, in a thread."""
    fake = model([TensorSpec("x", "float32", (None,))], name="m")
    watchdog = Watchdog()
    watchdog.start()
    worker = CallWorker.__new__(CallWorker)  # without an arbiter
    worker.context = WorkerContext(
        application=create_app([fake], Catalog((fake.info,)), max_body_bytes=10**6).wsgi_app,
        config=CONFIG,
        limits=settings.load({}).limits,
        watchdog=watchdog,
        reporter=Reporter(path.with_name("reports")),
        server=("127.0.0.1", 1),
        load_seconds=0.0,
    )
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        sys.setprofile(files)
        while True:
            worker.accept(listener)

    threading.Thread(target=serve, daemon=True).start()


async def call(folder: Path, files: Files) -> bytes:
    """Send a call through a gateway; return the answer."""
    wanted = gateway_settings.load({"PERCORE_STATE_DIR": str(folder)}, on_machine=True)
    writer = logs.configure_background("error", lambda: None)
    gateway = Gateway(wanted, GatewayMetrics(), writer, lambda: None, lambda: False)
    gateway.publish((Endpoint(str(folder / "worker"), 0, 0, pod="worker"),))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    serving = asyncio.create_task(gateway.run(listener, asyncio.Event()))
    await asyncio.sleep(0.3)
    files.recording = True
    reader, client = await asyncio.open_connection(*listener.getsockname())
    client.write(CALL)
    answer = await reader.read(65536)
    files.recording = False
    serving.cancel()
    return answer


def main() -> None:
    """Print the answer's status line and the files as JSON."""
    folder, files = Path(sys.argv[1]), Files()
    worker_at(folder / "worker", files)
    sys.setprofile(files)
    answer = asyncio.new_event_loop().run_until_complete(asyncio.wait_for(call(folder, files), 20))
    sys.setprofile(None)
    print(json.dumps([answer.split(b"\r\n")[0].decode(), files.seen]), flush=True)
    os._exit(0)  # the worker's thread goes on


if __name__ == "__main__":
    main()
