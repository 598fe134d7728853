"""One connection from accept to close: receive, run, answer, and say what happened, once."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from gunicorn.http import wsgi

from percore.api.facts import ENVIRON_KEY, CallFacts
from percore.errors import CallError, HandlerFailed, RunTimeout, WaitTimeout
from percore.logs import write_call
from percore.settings import LimitSettings
from percore.worker import abandoned, answer, receive
from percore.worker.clocks import Guardian, Watch
from percore.worker.report import Reporter

log = logging.getLogger("percore.worker")

ABANDONED = "abandoned"
UNDELIVERED = "undelivered"
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[receive.Buffer]]


@dataclass(slots=True)
class Surroundings:
    """What an exchange needs of its worker."""

    application: Application
    config: Any
    """Gunicorn's configuration: the limits of its parser."""
    limits: LimitSettings
    guardian: Guardian
    reporter: Reporter
    server: Any
    """The listening address, for WSGI's ``SERVER_NAME``."""
    load_seconds: float
    timed_out: Callable[[], bool] = lambda: False
    """Whether the arbiter aborted this worker, because not even the guardian got a turn."""
    freed: Callable[[], None] = lambda: None
    """Called when the caller has its answer: what is left is to say so, and meanwhile the next call may come in."""


class Exchange:
    """One connection. ``serve`` does all of it, and never raises."""

    def __init__(self, around: Surroundings, client: socket.socket, address: receive.Address, wait: float | None) -> None:
        self._around = around
        self._client = client
        self._address = address
        self._wait = wait
        self._run: float | None = None
        self._facts = CallFacts()
        self._status = "500 Internal Server Error"
        self._headers: list[tuple[str, str]] = []
        self._head: receive.Head | None = None
        self._request_id = ""
        self._request_bytes = 0
        self._abandoned = False

    def serve(self) -> None:
        """Serve whatever comes over the connection, and close it."""
        unread = True
        try:
            source = receive.Deadline(self._client, self._around.limits.body)
            self._head = receive.read_head(self._around.config, source, self._address)
            if self._head is None:
                self._client.close()
                return
            self._begin(self._head)
            body = receive.read_body(self._head, self._client, source, self._around.limits.max_body_bytes)
            unread, self._request_bytes = False, len(body)
            if abandoned.peer_is_gone(self._client):
                self._left_while_waiting()
                return
            chunks = self._compute(self._head, body)
        except CallError as error:
            chunks = self._refusal(error)
        except OSError:
            self._left_while_waiting()
            return
        except Exception:  # a fault of ours must not end the worker
            log.exception("a call could not be served")
            chunks = self._refusal(HandlerFailed())
        self._answer(chunks, unread=unread)

    def _begin(self, head: receive.Head) -> None:
        headers = dict(head.headers)
        given = headers.get("X-REQUEST-ID", "")
        self._request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        if self._is_call:
            self._around.reporter.started(headers.get("X-PERCORE-GATEWAY", "")[:128])
        limit = self._around.limits.wait
        if self._wait is not None and self._wait > limit:
            raise WaitTimeout(f"the call waited {self._wait:.1f} s for a free worker, and the limit is {limit:g} s")

    @property
    def _is_call(self) -> bool:
        """Only calls are counted and logged: what is read only belongs on the exporter's port."""
        return self._head is None or self._head.method not in ("GET", "HEAD")

    def _compute(self, head: receive.Head, body: receive.Buffer) -> list[receive.Buffer]:
        _, environ = wsgi.create(head, self._client, self._address, self._around.server, self._around.config)
        environ["wsgi.input"] = receive.WholeBody(body)
        environ[ENVIRON_KEY] = self._facts
        environ.pop("HTTP_UPGRADE", None)  # no other protocol is spoken here
        began = time.perf_counter()
        self._around.guardian.arm(
            Watch(
                self._around.limits.run,
                on_expired=self._expired,
                is_gone=lambda: abandoned.peer_is_gone(self._client),
                on_gone=self._left_while_computing,
            )
        )
        try:
            chunks = list(self._around.application(environ, self._start_response))
        except BaseException as error:  # also SystemExit, which a model must not end its worker with
            if self._around.timed_out():
                raise self._run_timeout() from error
            log.exception("the model raised %s, which ends a process", type(error).__name__)
            raise HandlerFailed() from error
        finally:
            self._around.guardian.disarm()
            self._run = time.perf_counter() - began
        return [answer.head_of(self._status, [*self._headers, *self._own_headers()]), *chunks]

    def _start_response(self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
        self._status, self._headers = status, headers

    def _own_headers(self) -> list[tuple[str, str]]:
        times = [("wait", self._wait), ("run", self._run)]
        timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in times if seconds is not None)
        return [("X-Request-ID", self._request_id), *([("Server-Timing", timing)] if timing else [])]

    def _refusal(self, error: CallError) -> list[receive.Buffer]:
        self._request_id = self._request_id or uuid.uuid4().hex
        self._status = str(error.status)
        return answer.error_answer(error, self._own_headers())

    def _answer(self, chunks: list[receive.Buffer], *, unread: bool) -> None:
        try:
            sent = answer.send(self._client, chunks, self._around.limits.body)
        except answer.Undelivered as error:
            self._client.close()
            self._end(UNDELIVERED, error.sent)
            return
        answer.close(self._client, unread=unread)
        self._around.freed()
        self._end(self._status.split(" ", 1)[0], sent)

    def _end(self, code: str, response_bytes: int) -> None:
        if not self._is_call:
            return
        self._around.reporter.finished(self._facts.model, code, self._run, self._wait)
        fields = {
            "request_id": self._request_id,
            "model": self._facts.model,
            "version": self._facts.version,
            "status": code,
            "wait_seconds": self._wait,
            "run_seconds": self._run,
            "request_bytes": self._request_bytes,
            "response_bytes": response_bytes,
        }
        write_call({name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()})

    def _left_while_waiting(self) -> None:
        """Drop a call whose client is gone before it was computed: it waited in the queue, or its request broke off."""
        self._client.close()
        self._around.reporter.counted("abandoned", state="waiting")
        self._end(ABANDONED, 0)

    def _left_while_computing(self, left: float) -> bool:
        if not self._abandoned:
            self._abandoned = True
            self._around.reporter.counted("abandoned", state="executing")
        if abandoned.should_end(self._around.limits.abandoned, left, self._around.load_seconds):
            self._run = self._around.limits.run - left
            self._end_process(ABANDONED, 0, reason="abandoned")
        return True

    def _run_timeout(self) -> RunTimeout:
        return RunTimeout(f"the call computed longer than the run limit, {self._around.limits.run:g} s, and was ended")

    def _expired(self) -> None:
        self._run = self._around.limits.run
        code = "504"
        try:
            sent = answer.send(self._client, self._refusal(self._run_timeout()), seconds=1.0)
            answer.drain(self._client)
        except answer.Undelivered as error:
            code, sent = UNDELIVERED, error.sent
        self._end_process(code, sent, reason="run-timeout")

    def _end_process(self, code: str, sent: int, reason: str) -> None:
        """End the worker from the guardian's thread: nothing else can stop TensorFlow; the arbiter starts another."""
        self._end(code, sent)
        self._around.reporter.counted("ending", reason=reason)
        os._exit(0)
