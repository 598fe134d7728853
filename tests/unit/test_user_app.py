"""A user's WSGI app in the worker: how it is found, and the environ that it gets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from gunicorn import util
from percore import settings
from percore.errors import LoadError, SettingsError
from percore.handlers import wsgi
from percore.worker.user_app import Routes, UserApp

from tests.exchanges import Served, parts, request

APPS = "tests.service.apps"


def shows(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with every plain value of the environ, and the body."""
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({**seen, "body": environ["wsgi.input"].read().decode()}).encode()]


def seen(raw: bytes, *, gateway: bool = False) -> dict[str, str]:
    """Return the values of the environ that the app gets for a request, with or without a gateway."""
    with Served(shows, user_app=UserApp()) as served:
        if gateway:
            served.reserve()
        served.client.sendall(raw)
        document: dict[str, str] = json.loads(parts(served.rest())[2])
    return document


# --- how it is found


def test_an_app_is_found_by_its_module_and_name_or_made_by_a_factory() -> None:
    assert wsgi.load(f"{APPS}:plain").__name__ == "plain"
    assert isinstance(wsgi.load(f"{APPS}:app"), Flask)
    assert isinstance(wsgi.load(f"{APPS}:create_app()"), Flask)


GUNICORNS = [
    APPS,
    f"{APPS}:app",
    f"{APPS}:create_app()",
    f"{APPS}:create_app('a')",
    f"{APPS}:create_app(name='a', size=-1)",
    f"{APPS}:create_app(**{{}})",
    f"{APPS}:create_app(size)",
    f"{APPS}:create_app({{[]: 1}})",
    f"{APPS}:create_app()()",
    f"{APPS}:app.wsgi_app",
    f"{APPS}:create_app().wsgi_app",
    f"{APPS}:",
    f"{APPS}:app app",
]


@pytest.mark.parametrize("target", GUNICORNS)
def test_the_same_names_are_accepted_as_by_gunicorn_with_the_same_meaning(target: str) -> None:
    try:
        by_gunicorn = util.import_app(target)
    except (util.AppImportError, ValueError, TypeError):
        with pytest.raises(SettingsError, match="PERCORE_APP="):
            settings.load({"PERCORE_APP": target})
    else:
        assert wsgi.load(settings.load({"PERCORE_APP": target}).app.target) is by_gunicorn


def test_the_arguments_of_a_factory_arrive() -> None:
    made = wsgi.load(f'{APPS}:made_with("a", [1, 2], size=-1, names={{"x": None}})')
    assert made.__dict__["given"] == (("a", [1, 2]), {"size": -1, "names": {"x": None}})


def test_a_module_alone_without_an_application_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only-app.py").write_text("def app(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert wsgi.load("only-app:app").__name__ == "app"
    with pytest.raises(LoadError, match="app only-app: module 'only-app' has no 'application'"):
        wsgi.load("only-app")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("no_such_module:app", r"app no_such_module:app: there is no module 'no_such_module'"),
        (f"{APPS}:nothing", rf"app {APPS}:nothing: module '{APPS}' has no 'nothing'"),
        (f"{APPS}:nothing()", rf"module '{APPS}' has no 'nothing'"),
        (f"{APPS}:number", r"'number' is not callable; it is an int"),
        (f"{APPS}:number()", r"'number' is not callable; it is an int"),
        (f"{APPS}:fails_to_make()", r"fails_to_make\(\) raised FileNotFoundError: no such weights"),
        (f"{APPS}:returns_nothing()", r"returns_nothing\(\) must return a WSGI app, which is callable; it returned None"),
        (f"{APPS}:plain()", r"plain\(\) raised TypeError: plain\(\) missing 2 required positional arguments"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_one_line_that_says_why(target: str, said: str) -> None:
    with pytest.raises(LoadError, match=said) as caught:
        wsgi.load(target)
    assert "\n" not in str(caught.value)


# --- the environ


def test_a_get_is_a_call_and_has_its_body() -> None:
    document = seen(request("GET", body=b"abc"))
    assert (document["REQUEST_METHOD"], document["CONTENT_LENGTH"], document["body"]) == ("GET", "3", "abc")
    with Served(shows, user_app=UserApp()) as served:
        served.client.sendall(request("GET"))
        served.rest()
    assert served.reports.events == ["started", "finished 200"]


@pytest.mark.parametrize("gateway", [False, True])
def test_the_path_the_query_and_the_server_are_the_same_as_under_gunicorn(
    gateway: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = b"GET /base/a%20b/%E2%82%AC?x=1&y=%2F HTTP/1.1\r\nHost: example.org:81\r\n\r\n"
    document = seen(raw, gateway=gateway)
    assert document["PATH_INFO"].encode("latin-1").decode() == "/base/a b/€"
    assert (document["SCRIPT_NAME"], document["QUERY_STRING"]) == ("", "x=1&y=%2F")
    assert (document["SERVER_NAME"], document["SERVER_PORT"], document["HTTP_HOST"]) == ("127.0.0.1", "8080", "example.org:81")
    assert document["RAW_URI"] == "/base/a%20b/%E2%82%AC?x=1&y=%2F"
    monkeypatch.setenv("SCRIPT_NAME", "/base")
    document = seen(raw, gateway=gateway)
    assert document["SCRIPT_NAME"] == "/base"
    assert document["PATH_INFO"].startswith("/a b/")


def test_a_call_without_a_body_that_comes_by_a_gateway_looks_as_its_client_sent_it() -> None:
    raw = b"%s / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nPercore-Client: 10.1.2.3\r\n\r\n0\r\n\r\n"
    document = seen(raw % b"GET", gateway=True)
    assert "CONTENT_LENGTH" not in document
    assert "HTTP_TRANSFER_ENCODING" not in document
    assert not [name for name in document if "PERCORE" in name]
    assert seen(raw % b"POST", gateway=True)["CONTENT_LENGTH"] == "0"


def test_the_client_is_the_gateways_client_and_only_a_gateway_may_say_so() -> None:
    raw = request("GET", "Percore-Client: 10.1.2.3")
    document = seen(raw, gateway=True)
    assert document["REMOTE_ADDR"] == "10.1.2.3"
    assert "REMOTE_PORT" not in document
    document = seen(raw)
    assert (document["REMOTE_ADDR"], document["REMOTE_PORT"]) == ("127.0.0.1", "1")


SCHEMES = [
    ("127.0.0.1", "X-Forwarded-Proto: https", "https"),
    ("127.0.0.1", "X-Forwarded-Ssl: on", "https"),
    ("127.0.0.1", "X-Forwarded-Proto: http", "http"),
    ("::1", "X-Forwarded-Proto: https", "https"),
    ("10.1.2.3", "X-Forwarded-Proto: https", "http"),
    ("unix", "X-Forwarded-Proto: https", "http"),
]


@pytest.mark.parametrize(("client", "header", "scheme"), SCHEMES)
def test_a_proxy_of_this_machine_may_set_the_scheme(client: str, header: str, scheme: str) -> None:
    raw = request("GET", header, f"Percore-Client: {client}")
    assert seen(raw, gateway=True)["wsgi.url_scheme"] == scheme


def test_the_scheme_is_plain_if_a_proxy_contradicts_itself() -> None:
    assert seen(request("GET", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: off"))["wsgi.url_scheme"] == "http"


# --- percore's own paths


@pytest.mark.parametrize(("method", "body"), [("GET", b'{"status":"ok"}'), ("HEAD", b"")])
def test_a_path_of_percores_own_is_answered_without_the_app_and_is_no_call(method: str, body: bytes) -> None:
    with Served(shows, user_app=UserApp()) as served:
        served.client.sendall(request(method).replace(b"/path?q=1", b"/%2D/ready"))
        status, headers, rest = parts(served.rest())
    assert (status, rest) == ("HTTP/1.1 200 OK", body)
    assert headers["content-length"] == "15"
    assert "x-request-id" in headers
    assert "server-timing" not in headers
    assert served.reports.events == ["started", "released"]


# --- answers


def test_an_app_that_raises_before_its_answer_is_500_and_only_the_log_says_why() -> None:
    def fails(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise RuntimeError("secret")

    with Served(fails, user_app=UserApp()) as served:
        served.client.sendall(request("GET"))
        status, _, body = parts(served.rest())
    assert status.startswith("HTTP/1.1 500")
    assert json.loads(body) == {"error": "the app failed; the log of the service has the reason", "code": "handler-failed"}


def test_a_stream_has_no_run_time_in_its_head_and_an_apps_own_request_id_is_left_out() -> None:
    def streams(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("X-Request-Id", "mine"), ("Server-Timing", "db;dur=1")])
        yield b"a"
        yield b"b"

    with Served(streams, user_app=UserApp()) as served:
        served.client.sendall(request("GET", "X-Request-ID: yours"))
        head, _, _ = served.rest().partition(b"\r\n\r\n")
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert names.count(b"x-request-id") == 1
    assert b"X-Request-ID: yours" in head
    assert b"Server-Timing: db;dur=1" in head
    assert b"run;dur" not in head


# --- routes


def test_the_metric_has_the_route_of_a_flask_app_and_not_the_path() -> None:
    app = Flask("routes", static_folder=None)
    app.add_url_rule("/users/<name>", "user", lambda name: name)
    models = []
    for path in (b"/users/one", b"/users/two", b"/nowhere"):
        with Served(app, user_app=UserApp()) as served:
            served.client.sendall(request("GET").replace(b"/path?q=1", path))
            served.rest()
        models += served.reports.models
    assert models == ["/users/<name>", "/users/<name>", "app"]


@dataclass
class Rule:
    rule: str


@dataclass
class Matched:
    url_rule: Rule | None


def test_the_number_of_routes_is_bounded() -> None:
    routes = Routes(most=2)
    found = [routes.of({"werkzeug.request": Matched(Rule(f"/{number}"))}) for number in (0, 1, 2, 1)]
    assert found == ["/0", "/1", "app", "/1"]
    assert routes.of({}) == routes.of({"werkzeug.request": Matched(None)}) == "app"


def test_an_arbiter_for_apps_imports_neither_asyncio_nor_flask_nor_numpy() -> None:
    code = "import sys, percore.worker.arbiter; print([name for name in ('asyncio', 'flask', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
