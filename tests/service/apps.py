"""WSGI apps that the tests of the service load."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, redirect, request, send_file, url_for

StartResponse = Callable[..., Any]
THREAD = threading.get_ident()
"""The thread that imported this module."""

app = Flask(__name__, static_folder=None)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@app.get("/")
def home() -> str:
    return "<p>home</p>"


@app.route("/seen", methods=METHODS)
@app.route("/seen/<path:rest>", methods=METHODS)
def seen(rest: str = "") -> dict[str, Any]:
    """Answer with the values of the request that the app sees."""
    names = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "REMOTE_ADDR", "wsgi.url_scheme", "SERVER_PORT")
    environ = {name: request.environ.get(name) for name in (*names, "CONTENT_LENGTH", "SERVER_NAME")}
    headers = sorted(name.lower() for name, _ in request.headers)
    return {"environ": environ, "headers": headers, "body": request.get_data(as_text=True), "rest": rest}


@app.get("/who")
def who() -> dict[str, Any]:
    """Answer with the process and the thread, and whether this thread imported the app."""
    return {"pid": os.getpid(), "same_thread": threading.get_ident() == THREAD}


@app.post("/burn")
def burn() -> dict[str, Any]:
    """Keep a core busy for ``seconds``; answer with begin and end."""
    began = ended = time.monotonic()
    while ended < began + float(request.args["seconds"]):
        ended = time.monotonic()
    return {"pid": os.getpid(), "began": began, "ended": ended}


@app.get("/phrase")
def phrase() -> Response:
    return Response("body", status="299 My Own Reason")


@app.post("/at-exit")
def at_exit() -> str:
    """Register a function that writes to a file when this process ends."""
    atexit.register(Path(request.args["path"]).write_text, "ended")
    return "registered"


@app.get("/sleep/<float:seconds>")
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


@app.get("/wait")
def wait() -> str:
    """Wait for a file."""
    path = Path(request.args["until"])
    while not path.exists():
        time.sleep(0.02)
    return "it is there"


@app.get("/stream")
def stream() -> Response:
    """Send a line, then wait for a file, then send another."""
    path = Path(request.args["until"])

    def lines() -> Iterator[str]:
        yield "first\n"
        while not path.exists():
            time.sleep(0.02)
        yield "last\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/breaks")
def breaks() -> Response:
    """Fail in the middle of an answer."""

    def lines() -> Iterator[str]:
        yield "first\n"
        raise RuntimeError("in the middle")

    return Response(lines(), mimetype="text/plain")


@app.get("/large/<int:size>")
def large(size: int) -> bytes:
    return b"x" * size


@app.post("/echo")
def echo() -> bytes:
    return request.get_data()


@app.post("/upload")
def upload() -> dict[str, Any]:
    """Answer with the fields of a form, and the name and content of each file."""
    files = {name: [file.filename, file.read().decode()] for name, file in request.files.items()}
    return {"fields": request.form.to_dict(), "files": files}


@app.get("/file")
def file() -> Response:
    return send_file(__file__, mimetype="text/plain", conditional=True)


@app.get("/cookies")
def cookies() -> Response:
    answer = Response("set", headers=[("X-Request-ID", "of the app"), ("Server-Timing", "db;dur=1")])
    answer.set_cookie("one", "1")
    answer.set_cookie("two", request.cookies.get("two", "") + "2")
    return answer


@app.get("/status/<int:code>")
def status(code: int) -> Response:
    return Response(status=code, headers=[("ETag", '"one"')])


@app.get("/moved")
def moved() -> Any:
    return redirect(url_for("home", _external=True))


@app.get("/fails")
def fails() -> str:
    raise RuntimeError("of the app")


@app.get("/forbidden")
def forbidden() -> str:
    abort(403, "not for you")


@app.get("/exits")
def exits() -> str:
    sys.exit(3)


application = app
"""The app that is served if the setting names only the module."""


def create_app(name: str = "", size: int = 0) -> Flask:
    return app


def made_with(*given: Any, **given_by_name: Any) -> Callable[..., Any]:
    """Return an app that answers with the arguments of this factory."""

    def made(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        return plain(environ, start_response)

    made.__dict__["given"] = (given, given_by_name)
    return made


def fails_to_make() -> Flask:
    raise FileNotFoundError("no such weights")


def returns_nothing() -> None:
    return None


number = 7


def plain(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """An app without a framework."""
    if environ["PATH_INFO"] == "/raises":
        raise RuntimeError("of the plain app")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode("latin-1")]
