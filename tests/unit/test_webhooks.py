"""Webhooks: the hosts that they may be sent to, the request and its signature, and hostile or slow receivers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Self

import pytest
from percore.errors import BadInput, SettingsError
from percore.gateway.store import webhook_post, webhook_sender
from percore.gateway.store.database import StoreFailed
from percore.gateway.store.webhook_hosts import Host, allows_address
from percore.gateway.store.webhook_sender import Sender
from percore.gateway.store.webhooks import (
    DELAYS,
    GIVE_UP_SECONDS,
    LONGEST_URL,
    Delivery,
    Outcome,
    WebhookSettings,
    check_url,
    host_of,
    next_attempt,
    parse_hosts,
    parse_secrets,
    send,
)
from standardwebhooks import Webhook, WebhookVerificationError

from tests.receivers import SECRET, Certificate, Received, Receiver, certificate, drip, raw_server, receiver

OLDER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
UNKNOWN = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
PAYLOAD = json.dumps(
    {"type": "call.succeeded", "data": {"id": "c1", "state": "succeeded", "status": 200, "note": "é"}}
).encode()
PUBLIC = "93.184.215.14"
NOT_PUBLIC = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::a00:1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:a00:1::1",
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


def settings(hosts: str = "127.0.0.1", secrets: str = SECRET, seconds: float = 5.0) -> WebhookSettings:
    return WebhookSettings(secrets=parse_secrets(secrets), hosts=parse_hosts(hosts), timeout_seconds=seconds)


def delivery(url: str, **more: Any) -> Delivery:
    fields: dict[str, Any] = {"id": "msg_1", "url": url, "payload": PAYLOAD, "attempts": 0, "created": time.time()}
    return Delivery(**(fields | more))


def to(port: int, path: str = "/hook", scheme: str = "http", host: str = "127.0.0.1") -> Delivery:
    return delivery(f"{scheme}://{host}:{port}{path}")


@pytest.fixture
def server() -> Iterator[Receiver]:
    with receiver() as known:
        yield known


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Names that resolve to addresses. Each lookup takes the next list; the last list stays."""
    names: dict[str, list[list[str]]] = {}

    def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = names[host].pop(0) if len(names[host]) > 1 else names[host][0]
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


# --- settings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("Receiver.example.com", (Host("receiver.example.com"),)),
        ("*.example.com:8443 , localhost", (Host(".example.com", port=8443), Host("localhost"))),
    ],
)
def test_names_of_hosts_are_read(text: str, hosts: tuple[Host, ...]) -> None:
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize(
    ("text", "network", "port"),
    [
        ("10.0.0.0/8", "10.0.0.0/8", None),
        ("10.0.0.5:8080", "10.0.0.5/32", 8080),
        ("fd00::1", "fd00::1/128", None),
        ("[fd00::1]:8080", "fd00::1/128", 8080),
        ("[fd00::/8]", "fd00::/8", None),
    ],
)
def test_addresses_and_networks_are_read(text: str, network: str, port: int | None) -> None:
    (host,) = parse_hosts(text)
    assert (str(host.network), host.port) == (network, port)


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "*.",
        "a.*.com",
        "https://example.com",
        "example.com/x",
        "example.com:0",
        "example.com:65536",
        "example.com:x",
        "a,,b",
        "10.0.0.1/8",
        "127.1",
        "2130706433",
        "0x7f.1",
        "exa mple.com",
        "[example.com]",
        "fe80::1%eth0",
        "é.example.com",
        "a@b.com",
        "a" * 64 + ".com",
        "a." * 127 + "com",
    ],
)
def test_a_text_that_is_not_a_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_hosts(text)


def test_one_or_two_secrets_are_read() -> None:
    assert parse_secrets("") == ()
    assert parse_secrets(f"{SECRET}, {OLDER}") == (SECRET, OLDER)


@pytest.mark.parametrize(
    "text",
    [
        SECRET.removeprefix("whsec_"),
        "whsec_c2hvcnQ=",
        "whsec_" + "A" * 92,
        SECRET[:-1],
        SECRET + "!",
        f"{SECRET},",
        f"{SECRET},{OLDER},{UNKNOWN}",
    ],
)
def test_a_bad_secret_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="24 to 64 bytes in base64") as raised:
        parse_secrets(text)
    assert text.strip(",")[6:20] not in str(raised.value)


def test_settings_do_not_show_their_secrets() -> None:
    assert SECRET[6:] not in repr(settings())


def test_hosts_without_a_secret_are_refused() -> None:
    with pytest.raises(SettingsError, match="secret"):
        settings(secrets="")


# --- URLs -------------------------------------------------------------------------------------------------------------------

ALLOWED = "receiver.example.com,*.hooks.example.com,only.example.com:8443,10.0.0.0/8,[fd00::1]:8080"


@pytest.mark.parametrize(
    "url",
    [
        "https://receiver.example.com",
        "HTTPS://RECEIVER.example.com/a?b=c&d=%20",
        "http://receiver.example.com:9000/",
        "https://a.hooks.example.com/",
        "https://a.b.hooks.example.com/",
        "https://only.example.com:8443/",
        "http://10.9.8.7/",
        "http://[fd00::1]:8080/",
        "https://receiver.example.com/" + "a" * (LONGEST_URL - 29),
    ],
)
def test_a_url_to_an_allowed_host_is_taken(url: str) -> None:
    check_url(url, settings(ALLOWED))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("", "with http or https"),
        ("ftp://receiver.example.com/", "with http or https"),
        ("file:///etc/passwd", "with http or https"),
        ("//receiver.example.com/", "with http or https"),
        ("https://receiver.example.com/ x", "printable ASCII"),
        ("https://receiver.example.com/\r\nX: y", "printable ASCII"),
        ("https://receiver.example.com/\n", "printable ASCII"),
        ("https://receiver.example.com\\@evil.example.org/", "printable ASCII"),
        ("https://réceiver.example.com/", "printable ASCII"),
        ("https://receiver.example.com/" + "a" * (LONGEST_URL - 28), "2048"),
        ("https://receiver.example.com/#a", "fragment"),
        ("https://receiver.example.com/#", "fragment"),
        ("https://user:secret@receiver.example.com/", "user name"),
        ("https://receiver.example.com@evil.example.org/", "user name"),
        ("https://receiver.example.com:0/", "port"),
        ("https://receiver.example.com:65536/", "port"),
        (f"https://receiver.example.com:{443:0400}/", "port"),
        ("https://receiver.example.com:x/", "port"),
        ("https:///path", "must have a host"),
        ("https://[::1/", "must have a host"),
        ("https://[::1]x/", "must have a host"),
        ("https://evil.example.org/", "operator"),
        ("https://receiver.example.com.evil.example.org/", "operator"),
        ("https://receiver.example.com./", "operator"),
        ("https://xreceiver.example.com/", "operator"),
        ("https://hooks.example.com/", "operator"),
        ("https://xhooks.example.com/", "operator"),
        ("https://only.example.com/", "operator"),
        ("http://11.0.0.1/", "operator"),
        ("http://167772161/", "operator"),
        ("http://0x0a000001/", "operator"),
        ("http://012.0.0.1/", "operator"),
        ("http://[fd00::1]/", "operator"),
        ("http://[::ffff:11.0.0.1]/", "operator"),
    ],
)
def test_any_other_url_is_refused_with_its_rule(url: str, rule: str) -> None:
    with pytest.raises(BadInput, match=rule) as raised:
        check_url(url, settings(ALLOWED))
    assert str(raised.value).startswith("Percore-Webhook: must ")


def test_a_refusal_shows_the_url_without_secrets() -> None:
    with pytest.raises(BadInput) as raised:
        check_url("https://user:hidden@evil.example.org/hook?token=hidden", settings(ALLOWED))
    assert "'https://evil.example.org/hook'" in str(raised.value)
    assert "hidden" not in str(raised.value)


def test_without_allowed_hosts_webhooks_are_off() -> None:
    with pytest.raises(BadInput, match="webhooks are off"):
        check_url("https://receiver.example.com/", settings("", ""))


# --- addresses --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_though_its_name_is_allowed(address: str) -> None:
    assert not allows_address(parse_hosts("receiver.example.com,*.example.com"), address, 443)


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert allows_address((), address, 443)


@pytest.mark.parametrize(
    ("hosts", "address", "allowed"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8:8080", "10.1.2.3", False),
        ("10.0.0.0/8:443", "10.1.2.3", True),
        ("10.0.0.0/8", "192.168.0.1", False),
        ("64:ff9b::/96", "64:ff9b::808:808", True),
        ("64:ff9b::/96", "64:ff9b::a00:1", False),
        ("64:ff9b::/96,10.0.0.0/8", "64:ff9b::a00:1", True),
        ("2002::/16", "2002:a00:1::1", False),
    ],
)
def test_an_entry_allows_a_private_address(hosts: str, address: str, allowed: bool) -> None:
    assert allows_address(parse_hosts(hosts), address, 443) is allowed


def test_a_name_that_resolves_to_a_private_address_gets_no_connection(server: Receiver) -> None:
    outcome = send(to(server.port, host="localhost"), settings("localhost"))
    assert outcome == Outcome(False, None, "the host has no address that webhooks may be sent to")
    assert server.connections == 0


def test_a_name_and_its_private_address_may_both_be_listed(server: Receiver) -> None:
    assert send(to(server.port, host="localhost"), settings("localhost,127.0.0.1")).delivered
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


def test_a_name_that_changes_its_address_is_refused_at_the_next_attempt(
    server: Receiver, resolve: dict[str, list[list[str]]]
) -> None:
    """DNS rebinding: each time, the address of the connection itself is checked."""
    resolve["receiver.example.com"] = [["127.0.0.1"], ["127.0.0.2"]]
    hook = to(server.port, host="receiver.example.com")
    allowed = settings("receiver.example.com,127.0.0.1")
    assert send(hook, allowed).delivered
    assert "no address" in send(hook, allowed).reason
    assert server.connections == 1


def test_a_name_is_resolved_once_for_one_attempt(server: Receiver, resolve: dict[str, list[list[str]]]) -> None:
    resolve["receiver.example.com"] = [["127.0.0.1"], ["169.254.169.254"]]
    assert send(to(server.port, host="receiver.example.com"), settings("receiver.example.com,127.0.0.1")).delivered
    assert resolve["receiver.example.com"] == [["169.254.169.254"]], "a second lookup would have used this list up"


def test_refused_and_dead_addresses_of_a_name_are_left_out(server: Receiver, resolve: dict[str, list[list[str]]]) -> None:
    resolve["receiver.example.com"] = [["10.0.0.1", "127.0.0.3", "127.0.0.1"]]  # nothing listens on the second one
    assert send(to(server.port, host="receiver.example.com"), settings("receiver.example.com,127.0.0.0/8")).delivered
    assert server.connections == 1


def test_an_address_that_does_not_answer_leaves_time_for_the_next_one(
    server: Receiver, resolve: dict[str, list[list[str]]]
) -> None:
    resolve["receiver.example.com"] = [["127.0.0.5", "127.0.0.1"]]
    with socket.socket() as silent, contextlib.ExitStack() as waiting:
        silent.bind(("127.0.0.5", server.port))
        silent.listen(0)
        for _ in range(4):  # the accept queue is full, so the next connection gets no answer
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.5", server.port))
        hook = to(server.port, host="receiver.example.com")
        assert send(hook, settings("receiver.example.com,127.0.0.0/8", seconds=1.0)).delivered


def test_a_url_that_is_no_longer_allowed_is_not_sent(server: Receiver) -> None:
    outcome = send(to(server.port), settings("receiver.example.com"))
    assert outcome.reason == "the URL must have a host and a port that the operator of this service allows"
    assert server.connections == 0


# --- what a receiver gets ---------------------------------------------------------------------------------------------------


def test_a_receiver_can_verify_a_webhook(server: Receiver) -> None:
    assert send(to(server.port, "/hook?token=1"), settings()) == Outcome(True, 204, "the receiver answered 204")
    (request,) = server.requests
    assert request.path == "/hook?token=1"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "msg_1"
    assert request.body == PAYLOAD
    assert Webhook(SECRET).verify(request.body, request.headers)["type"] == "call.succeeded"


def test_a_receiver_refuses_a_changed_byte_and_another_secret(server: Receiver) -> None:
    send(to(server.port), settings())
    (request,) = server.requests
    for secret, body in ((SECRET, PAYLOAD.replace(b"c1", b"c2")), (UNKNOWN, PAYLOAD)):
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            Webhook(secret).verify(body, request.headers)


@pytest.mark.parametrize("secret", [SECRET, OLDER])
def test_while_secrets_are_rotated_a_receiver_may_have_either(server: Receiver, secret: str) -> None:
    send(to(server.port), settings(secrets=f"{SECRET},{OLDER}"))
    (request,) = server.requests
    assert len(request.headers["webhook-signature"].split(" ")) == 2
    Webhook(secret).verify(request.body, request.headers)


def test_another_attempt_has_the_same_id_and_its_own_time(server: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = to(server.port)
    send(hook, settings())
    before = server.requests[0].headers
    time.sleep(1.1)
    send(hook, settings())
    after = server.requests[1].headers
    assert before["webhook-id"] == after["webhook-id"]
    assert int(before["webhook-timestamp"]) < int(after["webhook-timestamp"])
    Webhook(SECRET).verify(PAYLOAD, after)


def javascript(request: Received, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    """Return the result of the npm package for a webhook."""
    script = Path(__file__).parent.parent / "verify_webhook.js"
    given = json.dumps({"secret": SECRET, "headers": request.headers | headers, "body": body.decode()})
    done = subprocess.run(["node", str(script)], input=given, check=True, capture_output=True, text=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def has_javascript() -> bool:
    if not shutil.which("node"):
        return False
    return subprocess.run(["node", "-e", 'require("standardwebhooks")'], check=False, capture_output=True).returncode == 0


NO_JAVASCRIPT = "needs node, and the npm package `standardwebhooks` in NODE_PATH"


@pytest.mark.skipif(not has_javascript(), reason=NO_JAVASCRIPT)
def test_a_receiver_in_javascript_accepts_ours_and_refuses_a_changed_byte_and_a_replay(server: Receiver) -> None:
    send(to(server.port), settings())
    (request,) = server.requests
    assert javascript(request, PAYLOAD, {}) == {"accepted": json.loads(PAYLOAD)}
    assert "No matching signature" in javascript(request, PAYLOAD.replace(b"c1", b"c2"), {})["refused"]
    old = datetime.now(UTC) - timedelta(minutes=6)
    signature = Webhook(SECRET).sign("msg_1", old, PAYLOAD.decode())
    replay = {"webhook-timestamp": str(int(old.timestamp())), "webhook-signature": signature}
    assert "too old" in javascript(request, PAYLOAD, replay)["refused"]
    assert "No matching signature" in javascript(request, PAYLOAD, {"webhook-id": "msg_2"})["refused"]


PAGE = (Path(__file__).parent.parent.parent / "docs/webhooks.md").read_text()


def example(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def run_example(tmp_path: Path, command: list[str], code: str, port: int) -> list[Outcome]:
    """Start a receiver from the docs page. Send it a webhook with the right signature, and one with a wrong signature."""
    file = tmp_path / ("receiver.js" if command[0] == "node" else "receiver.py")
    file.write_text(code)
    environment = os.environ | {"WEBHOOK_SECRET": SECRET, "PORT": str(port)}
    hook = to(port, "/percore")
    with subprocess.Popen([*command, str(file)], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            ends = time.monotonic() + 30
            while (first := send(hook, settings())).status is None and time.monotonic() < ends:
                time.sleep(0.1)
            return [first, send(hook, settings(secrets=UNKNOWN))]
        finally:
            process.terminate()
            assert process.stdout
            assert process.stdout.read() == "call.succeeded c1\n"


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    return number


def test_the_page_s_receiver_in_python_takes_ours_and_refuses_others(tmp_path: Path, port: int) -> None:
    code = "import logging\nlogging.disable()\nimport flask.cli\nflask.cli.show_server_banner = lambda *_: None\n"
    code += example("python") + f"\n\napp.run(port={port})\n"
    outcomes = run_example(tmp_path, [sys.executable], code, port)
    assert [each.status for each in outcomes] == [204, 400]


@pytest.mark.skipif(not has_javascript(), reason=NO_JAVASCRIPT)
def test_the_page_s_receiver_in_javascript_takes_ours_and_refuses_others(tmp_path: Path, port: int) -> None:
    outcomes = run_example(tmp_path, ["node"], example("js"), port)
    assert [each.status for each in outcomes] == [204, 400]


# --- answers ----------------------------------------------------------------------------------------------------------------


def test_a_redirect_is_a_failure_and_is_not_followed(server: Receiver) -> None:
    server.answers.append((302, {"Location": f"http://127.0.0.1:{server.port}/elsewhere"}, b""))
    outcome = send(to(server.port), settings())
    assert (outcome.delivered, outcome.status) == (False, 302)
    assert [each.path for each in server.requests] == ["/hook"]


@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_error_of_the_receiver_is_a_failure_and_its_words_are_not_logged(server: Receiver, status: int) -> None:
    server.answers.append((status, {}, b"hidden"))
    assert send(to(server.port, "/hook?token=hidden"), settings()) == Outcome(False, status, f"the receiver answered {status}")


def test_gone_ends_a_delivery(server: Receiver) -> None:
    server.answers.append((410, {}, b""))
    assert send(to(server.port), settings()).gone


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("soon", None),
        ("-5", None),
        ("1e9", None),
        ("9" * 400, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_has_seconds_or_a_date(server: Receiver, text: str, seconds: float | None) -> None:
    server.answers.append((503, {"Retry-After": text}, b""))
    assert send(to(server.port), settings()).retry_after == seconds


def test_retry_after_may_be_a_date_to_come(server: Receiver) -> None:
    server.answers.append((429, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)}, b""))
    assert send(to(server.port), settings()).retry_after == pytest.approx(90, abs=3)


def test_a_large_answer_is_read_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = threading.Event()
    count = [0]

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000000\r\n\r\n")
        try:
            for _ in range(10_000):
                count[0] += connection.send(bytes(100_000))
        finally:
            sent.set()

    with raw_server(serve) as port:
        began = time.monotonic()
        assert send(to(port), settings()).delivered
        assert sent.wait(5)
    assert time.monotonic() - began < 3
    assert count[0] < 20_000_000, "what the kernel's buffers hold"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 60_000 + b"\r\nY: " + b"a" * 60_000 + b"\r\n\r\n", "headers are too large"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, "headers are too large"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
        (b"", "it broke"),
    ],
)
def test_an_answer_that_is_malformed_or_too_large_is_a_failure(content: bytes, reason: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(content)

    with raw_server(serve) as port:
        outcome = send(to(port), settings())
    assert not outcome.delivered
    assert reason in outcome.reason
    assert "SSH" not in outcome.reason


def hang(connection: socket.socket) -> None:
    connection.recv(65536)
    time.sleep(3)


def drip_status(connection: socket.socket) -> None:
    connection.recv(65536)
    drip(connection, b"HTTP/1.1 200 " + b"a" * 200)


@pytest.mark.parametrize("serve", [hang, drip_status])
def test_a_receiver_that_is_slow_or_drips_is_left_when_the_time_is_over(serve: Callable[[socket.socket], None]) -> None:
    with raw_server(serve) as port:
        began = time.monotonic()
        outcome = send(to(port), settings(seconds=0.6))
        took = time.monotonic() - began
    assert outcome == Outcome(False, None, "no answer in time")
    assert 0.5 < took < 1.5


def test_a_receiver_that_drips_its_body_has_received_the_webhook() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n")
        drip(connection, b"a" * 200)

    with raw_server(serve) as port:
        began = time.monotonic()
        assert send(to(port), settings(seconds=0.6)).delivered
        assert time.monotonic() - began < 1.5


def test_a_receiver_that_reads_nothing_is_left_when_the_time_is_over() -> None:
    with raw_server(lambda _connection: time.sleep(3)) as port:
        outcome = send(delivery(f"http://127.0.0.1:{port}/", payload=b"a" * 20_000_000), settings(seconds=0.6))
    assert outcome.reason == "no answer in time"


def test_a_closed_port_and_an_unknown_name_are_failures(resolve: dict[str, list[list[str]]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    resolve["127.0.0.1"] = [["127.0.0.1"]]
    assert send(to(port), settings()).reason == "no connection, or it broke: Connection refused"
    unknown = send(to(port, host="unknown.example.com"), settings("unknown.example.com"))
    assert unknown.reason == "the host's name cannot be resolved: Name or service not known"


# --- TLS --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "receiver.example.com")


@pytest.fixture
def trust(monkeypatch: pytest.MonkeyPatch, resolve: dict[str, list[list[str]]]) -> Iterator[Callable[[Path], None]]:
    """Return a function. It makes the system trust the certificates of a file."""
    resolve |= {name: [["127.0.0.1"]] for name in ("receiver.example.com", "other.example.com")}

    def believe(file: Path) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        webhook_post._tls.cache_clear()

    yield believe
    webhook_post._tls.cache_clear()


TLS_HOSTS = "receiver.example.com,other.example.com,127.0.0.1"


def test_a_webhook_goes_over_tls_with_the_name_of_the_receiver(good: Certificate, trust: Callable[[Path], None]) -> None:
    trust(good.file)
    names: list[str | None] = []
    good.context.sni_callback = lambda _socket, name, _context: names.append(name)
    with receiver(good.context) as server:
        assert send(to(server.port, scheme="https", host="receiver.example.com"), settings(TLS_HOSTS)).delivered
    Webhook(SECRET).verify(server.requests[0].body, server.requests[0].headers)
    assert names == ["receiver.example.com"]
    assert server.requests[0].headers["host"] == f"receiver.example.com:{server.port}"


@pytest.mark.parametrize("host", ["other.example.com", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(
    good: Certificate, trust: Callable[[Path], None], host: str, resolve: dict[str, list[list[str]]]
) -> None:
    trust(good.file)
    resolve["127.0.0.1"] = [["127.0.0.1"]]
    with receiver(good.context) as server:
        outcome = send(to(server.port, scheme="https", host=host), settings(TLS_HOSTS))
    assert "certificate is not trusted" in outcome.reason
    assert "is not valid for" in outcome.reason
    assert server.requests == []


def test_a_certificate_of_an_unknown_authority_is_refused(
    good: Certificate, trust: Callable[[Path], None], tmp_path: Path
) -> None:
    trust(certificate(tmp_path, "unknown.example.com").file)
    with receiver(good.context) as server:
        outcome = send(to(server.port, scheme="https", host="receiver.example.com"), settings(TLS_HOSTS))
    assert "certificate is not trusted" in outcome.reason
    assert server.requests == []


def test_a_receiver_without_tls_gets_nothing_for_https(
    server: Receiver, trust: Callable[[Path], None], good: Certificate
) -> None:
    trust(good.file)
    outcome = send(to(server.port, scheme="https", host="receiver.example.com"), settings(TLS_HOSTS))
    assert outcome.reason.startswith("no TLS with the receiver")
    assert server.requests == []


@pytest.mark.parametrize("phase", ["handshake", "answer"])
def test_the_time_of_tls_is_bounded_too(good: Certificate, trust: Callable[[Path], None], phase: str) -> None:
    trust(good.file)

    def serve(connection: socket.socket) -> None:
        if phase == "handshake":
            drip(connection, b"\x16\x03\x03\x10\x00" + bytes(200))
            return
        with good.context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(65536)
            drip(secured, b"HTTP/1.1 200 " + b"a" * 200)

    with raw_server(serve) as port:
        began = time.monotonic()
        outcome = send(to(port, scheme="https", host="receiver.example.com"), settings(TLS_HOSTS, seconds=0.6))
        took = time.monotonic() - began
    assert outcome.reason.startswith("no answer in time")
    assert took < 1.5


# --- when it is sent again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attempts", "delay"), [(1, 5), (2, 30), (3, 120), (7, 7200), (8, 14400), (99, 14400)])
def test_delays_are_seconds_at_first_then_minutes_then_hours_with_jitter(attempts: int, delay: float) -> None:
    found = {next_attempt(attempts, 0.0, 100.0) or 0.0 for _ in range(200)}
    assert delay <= min(found) - 100.0 < delay * 1.05
    assert delay * 1.15 < max(found) - 100.0 <= delay * 1.2


def test_a_delivery_is_given_up_after_a_day() -> None:
    now, times = 0.0, [0.0]
    while next_at := next_attempt(len(times), 0.0, now):
        now = next_at
        times.append(now)
    assert 11 <= len(times) <= 14
    assert GIVE_UP_SECONDS - DELAYS[-1] * 1.2 <= times[-1] <= GIVE_UP_SECONDS


@pytest.mark.parametrize(("asked", "delay"), [(0.0, 5), (1.0, 5), (600.0, 600), (10.0**9, 14400)])
def test_retry_after_makes_a_delay_longer_within_bounds(asked: float, delay: float) -> None:
    found = (next_attempt(1, 0.0, 0.0, asked) or 0.0) - 0.0
    assert delay <= found <= delay * 1.2


# --- the loop ---------------------------------------------------------------------------------------------------------------


class MemoryOutbox:
    """An outbox with the rules of a stored one."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.rows = {each.id: each for each in deliveries}
        self.due = dict.fromkeys(self.rows, 0.0)
        self.taken: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.failing = {"read": 0, "write": 0}
        """How many of the next reads and writes fail."""

    def add(self, delivery: Delivery) -> None:
        self.rows[delivery.id] = delivery
        self.due[delivery.id] = 0.0

    async def take(self, sending: Collection[str], full: Collection[str]) -> Delivery | None:
        self._fail("read")
        now = time.time()
        ids = (id_ for id_, at in self.due.items() if at <= now and id_ not in sending and self.rows[id_].host not in full)
        taken = next((self.rows[id_] for id_ in ids), None)
        self.taken += [taken.id] if taken else []
        return taken

    async def delivered(self, id: str) -> None:  # noqa: A002
        self._fail("write")
        self.ends.append((id, "delivered"))
        del self.due[id]

    async def failed(self, id: str, delay: float | None, reason: str) -> None:  # noqa: A002
        self._fail("write")
        self.ends.append((id, reason))
        self.rows[id].attempts += 1
        if delay is None:
            del self.due[id]
        else:
            self.due[id] = time.time() + delay

    def _fail(self, kind: str) -> None:
        if self.failing[kind]:
            self.failing[kind] -= 1
            raise StoreFailed("the store of calls cannot be used now")


class Attempts:
    """Replaces ``send`` in tests. A host in ``held`` does not answer until the test releases it."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.at_once: dict[str, int] = {}
        self.most = 0
        self.outcomes: dict[str, Outcome | Exception] = {}
        self._lock = threading.Lock()

    def __call__(self, delivery: Delivery, _settings: WebhookSettings) -> Outcome:
        with self._lock:
            self.made.append(delivery.id)
            self.at_once[delivery.host] = self.at_once.get(delivery.host, 0) + 1
            self.most = max(self.most, sum(self.at_once.values()))
        if delivery.host in self.held:
            assert self.held[delivery.host].wait(10)
        with self._lock:
            self.at_once[delivery.host] -= 1
        outcome = self.outcomes.get(delivery.id, Outcome(True, 200, "the receiver answered 200"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


class Rig:
    """A running sender, with its outbox and its attempts."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.outbox = MemoryOutbox(*deliveries)
        self.attempts = Attempts()
        self.counts: list[str] = []
        self.sender: Sender

    async def __aenter__(self) -> Self:
        self.sender = Sender(self.outbox, settings(), self.counts.append, self.attempts)
        self.task = asyncio.create_task(self.sender.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        for event in self.attempts.held.values():
            event.set()
        if not self.task.cancelling():
            self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


def many(host: str, count: int) -> list[Delivery]:
    return [delivery(f"https://{host}/", id=f"{host}-{number}") for number in range(count)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(webhook_sender, "POLL_SECONDS", 0.1)


def test_a_due_delivery_is_sent_once_and_counted(server: Receiver) -> None:
    hooks = [delivery(f"http://127.0.0.1:{server.port}/{number}", id=f"m{number}") for number in range(40)]

    async def work() -> None:
        async with Rig(*hooks) as rig:
            rig.sender._attempt = send
            await until(lambda: not rig.outbox.due)
            assert rig.counts == ["delivered"] * 40

    asyncio.run(work())
    assert sorted(each.headers["webhook-id"] for each in server.requests) == sorted(each.id for each in hooks)


def test_a_host_and_port_have_one_spelling() -> None:
    """Otherwise the bound of attempts at once to one receiver could be exceeded."""
    assert {host_of(f"http://A.example.com:{port}/") for port in ("080", "0080", "80")} == {"a.example.com:80"}


def test_a_dead_receiver_does_not_delay_the_others() -> None:
    async def work() -> None:
        async with Rig(*many("dead.example.com", 500), *many("a.example.com", 20), *many("b.example.com", 20)) as rig:
            rig.attempts.held["dead.example.com"] = threading.Event()
            await until(lambda: len(rig.outbox.ends) == 40)
            assert rig.attempts.at_once["dead.example.com"] == webhook_sender.SENDS_PER_HOST

    asyncio.run(work())


def test_all_attempts_at_once_are_bounded() -> None:
    hooks = [each for number in range(30) for each in many(f"h{number}.example.com", 2)]

    async def work() -> None:
        async with Rig(*hooks) as rig:
            rig.attempts.held = {each.host: threading.Event() for each in hooks}
            await until(lambda: len(rig.attempts.made) == webhook_sender.SENDS)
            await asyncio.sleep(0.2)
            assert len(rig.outbox.taken) == webhook_sender.SENDS, "other gateways cannot take these"
            for event in rig.attempts.held.values():
                event.set()
            await until(lambda: not rig.outbox.due)
            assert rig.attempts.most <= webhook_sender.SENDS

    asyncio.run(work())


def test_a_new_delivery_is_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_sender, "POLL_SECONDS", 60.0)

    async def work() -> None:
        async with Rig() as rig:
            await asyncio.sleep(0.1)
            rig.outbox.add(delivery("https://a.example.com/"))
            rig.sender.wake()
            await until(lambda: rig.counts == ["delivered"], 1.0)

    asyncio.run(work())


def test_a_delivery_that_becomes_due_with_time_is_found() -> None:
    async def work() -> None:
        async with Rig() as rig:
            await asyncio.sleep(0.05)
            rig.outbox.add(delivery("https://a.example.com/"))
            await until(lambda: rig.counts == ["delivered"], 1.0)

    asyncio.run(work())


def test_failures_are_sent_again_and_the_last_one_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    now = time.time()
    hooks = {
        "again": delivery("https://a.example.com/?hidden", id="again", created=now),
        "old": delivery("https://b.example.com/", id="old", created=now - GIVE_UP_SECONDS),
        "gone": delivery("https://c.example.com/", id="gone", created=now),
        "busy": delivery("https://d.example.com/", id="busy", created=now),
        "fault": delivery("https://e.example.com/", id="fault", created=now),
    }
    outcomes: dict[str, Outcome | Exception] = {
        "again": Outcome(False, 500, "the receiver answered 500"),
        "old": Outcome(False, 500, "the receiver answered 500"),
        "gone": Outcome(False, 410, "the receiver answered 410", gone=True),
        "busy": Outcome(False, 503, "the receiver answered 503", retry_after=600),
        "fault": RuntimeError("a fault"),
    }

    async def work() -> None:
        async with Rig(*hooks.values()) as rig:
            rig.attempts.outcomes = outcomes
            await until(lambda: len(rig.outbox.ends) == 5)
            assert sorted(rig.counts) == ["failed"] * 3 + ["given-up"] * 2
            assert set(rig.outbox.due) == {"again", "busy", "fault"}
            assert 4 < rig.outbox.due["again"] - now < 8
            assert 599 < rig.outbox.due["busy"] - now < 725
            assert ("fault", webhook_sender.FAULT.reason) in rig.outbox.ends

    with caplog.at_level(logging.INFO, "percore.gateway"):
        asyncio.run(work())
    given_up = [each for each in caplog.records if "it is not sent again" in each.getMessage()]
    assert len(given_up) == 2
    assert {each.levelname for each in given_up} == {"WARNING"}
    assert "hidden" not in caplog.text


def test_an_outbox_that_fails_for_a_while_ends_nothing_and_nothing_is_sent_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        rig = Rig(delivery("https://a.example.com/"))
        rig.outbox.failing = {"read": 3, "write": 3}
        async with rig:
            await until(lambda: not rig.outbox.due)
            assert rig.outbox.failing == {"read": 0, "write": 0}
            assert rig.attempts.made == ["msg_1"]
            assert rig.counts == ["delivered"]

    asyncio.run(work())
    assert not [each for each in caplog.records if each.exc_info], "the database has logged it already"


def test_a_cancelled_sender_takes_no_more_and_records_running_attempts() -> None:
    async def work() -> None:
        rig = Rig(*many("a.example.com", 10))
        rig.attempts.held["a.example.com"] = threading.Event()
        async with rig:
            await until(lambda: len(rig.attempts.made) == 2)
            rig.task.cancel()
            await asyncio.sleep(0.1)
            assert not rig.task.done()
        assert len(rig.outbox.ends) == 2
        assert len(rig.attempts.made) == 2

    asyncio.run(work())


def test_a_second_cancellation_ends_it_at_once() -> None:
    async def work() -> None:
        rig = Rig(*many("a.example.com", 10))
        rig.attempts.held["a.example.com"] = held = threading.Event()
        async with rig:
            await until(lambda: len(rig.attempts.made) == 2)
            rig.task.cancel()
            await asyncio.sleep(0.05)
            rig.task.cancel()
            began = time.monotonic()
            await asyncio.wait([rig.task], timeout=2)
            assert time.monotonic() - began < 1
            assert rig.outbox.ends == []
            held.set()

    asyncio.run(work())
