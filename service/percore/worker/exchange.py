"""One connection from accept to close: receive, run, answer, report."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gunicorn.http import wsgi

from percore.errors import CallError, HandlerFailed, RunTimeout
from percore.logs import write_call
from percore.model_metadata import ENVIRON_KEY, CallContext
from percore.settings import LimitSettings
from percore.worker import answer, receive
from percore.worker.answer import Headers, Reply
from percore.worker.report import Reporter
from percore.worker.user_app import UserApp
from percore.worker.watchdog import Deadline, Watchdog, should_end

log = logging.getLogger("percore.worker")

CLIENT_DISCONNECT = "client-disconnect"
UNDELIVERED = "undelivered"
INCOMPLETE = "incomplete"
HELD_SECONDS = 1.0
"""If a connection holds the worker for longer than this, it is counted and logged, even if it is a read, half a request, or
silent."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[receive.Buffer]]


@dataclass(slots=True)
class WorkerContext:
    """The parts of the worker that serving a connection needs."""

    application: Application
    config: Any
    """Gunicorn's configuration: the limits of its parser."""
    limits: LimitSettings
    watchdog: Watchdog
    reporter: Reporter
    server: Any
    """The listening address, for WSGI's ``SERVER_NAME``."""
    load_seconds: float
    timed_out: Callable[[], bool] = lambda: False
    """Whether the arbiter aborted this worker, because the watchdog could not run."""
    user_app: UserApp | None = None
    """Set if the application is a user's own app: then a GET is a call too."""
    reservations: receive.Reservations = field(init=False)

    def __post_init__(self) -> None:
        self.reservations = receive.Reservations(self.config)


class Exchange:
    """One connection. ``serve`` does all of it, and never raises."""

    def __init__(self, worker: WorkerContext, client: socket.socket, address: receive.Address) -> None:
        self._worker = worker
        self._user_app = worker.user_app
        self._client = client
        self._address = address
        self._run: float | None = None
        self._context = CallContext()
        self._call_environ: dict[str, Any] = {}
        self._status = "500"
        self._head: receive.Head | None = None
        self._began = False
        self._gateway = ""
        self._request_id = ""
        self._call_id = self._run_number = ""
        """Set if this is a stored call. Then its run ends with its connection, because the call may be sent again."""
        self._request_bytes = 0
        self._client_left = False
        self._pid = os.getpid()
        self._accepted = time.monotonic()

    def serve(self) -> None:
        """Serve the request of the connection, and close it."""
        unread = True
        try:
            source = receive.TimedSource(self._client, self._worker.limits.body_timeout)
            self._head, self._gateway = self._worker.reservations.read(self._client, source, self._address)
            if self._head is None:
                self._drop()
                return
            self._begin(self._head)
            largest = self._worker.limits.max_body_bytes if self._is_call else None
            body, is_gone = receive.read_rest(self._head, self._client, source, largest)
            unread, self._request_bytes = not self._is_call and receive.has_body(self._head), len(body)
            if is_gone:
                self._left_while_queued()
                return
            chunks: list[receive.Buffer] | None
            if self._user_app is not None and not self._is_call:
                chunks = self._user_app.own_answer(self._head, self._added_headers())
            else:
                chunks = self._compute(self._head, body)
        except CallError as error:
            chunks = self._error_answer(error)
        except OSError:  # the client left before the last byte of its call
            self._drop()
            return
        except Exception:  # a fault of ours must not end the worker
            log.exception("a call could not be served")
            chunks = self._error_answer(HandlerFailed())
        if chunks is not None:
            self._answer(chunks, unread=unread)

    def _begin(self, head: receive.Head) -> None:
        headers = dict(head.headers)
        given = headers.get("X-REQUEST-ID", "")
        self._request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        if self._gateway:
            self._call_id, self._run_number = headers.get("PERCORE-CALL", "")[:64], headers.get("PERCORE-RUN", "")[:8]
        self._began = True
        self._worker.reporter.started()

    @property
    def _is_call(self) -> bool:
        """Whether this is a call.

        Calls are counted and logged. Reads are counted and logged only if they hold the worker for long.
        """
        if self._head is None:
            return True
        if self._user_app is not None:
            return self._user_app.is_call(self._head.path)
        return self._head.method not in ("GET", "HEAD")

    def _compute(self, head: receive.Head, body: receive.Buffer) -> list[receive.Buffer] | None:
        """Run the application. Return the answer; None if it was sent already, or cannot be sent."""
        reply, environ = self._environ(head, body)
        began = time.perf_counter()
        try:
            with self._worker.watchdog.watching(self._deadline(self._worker.limits.run_timeout, self._expired)):
                chunks = self._produce(reply, environ)
        except answer.Undelivered:
            code = UNDELIVERED
        except BaseException as error:  # also SystemExit, because a model must not end its worker by it
            timed_out = self._worker.timed_out()
            if not timed_out:
                log.exception("the application raised %s", type(error).__name__)
            if not reply.headers_sent:
                raise (self._run_timeout() if timed_out else self._failed()) from error
            code = "504" if timed_out else "500"  # the caller sees that the end of the answer is missing
        else:
            code = str(reply.status).split(" ", 1)[0]
        finally:
            self._run = time.perf_counter() - began
        if reply.headers_sent:
            self._client.close()
            self._end(code, reply.wire_bytes)
            return None
        self._status = code
        return [reply.head(self._added_headers()), *(chunks or ())]

    def _failed(self) -> HandlerFailed:
        if self._user_app is None:
            return HandlerFailed()
        return HandlerFailed("the app failed; the log of the service has the reason")

    def _produce(self, reply: Reply, environ: dict[str, Any]) -> list[receive.Buffer] | None:
        try:
            result = self._worker.application(environ, self._start_response(reply))
            try:
                return reply.produce(result)
            finally:
                if hasattr(result, "close"):
                    result.close()
        finally:
            self._end_if_forked(failed=(reply.status or "").startswith("5"))

    def _start_response(self, reply: Reply) -> Callable[..., Any]:
        if self._user_app is None:
            return reply.start_response

        def start_response(*given: Any) -> Callable[[bytes], None]:
            self._note_route()  # Flask knows the route only now
            return reply.start_response(*given)

        return start_response

    def _note_route(self) -> None:
        if self._user_app is not None and self._call_environ and not self._context.model:
            self._context.model = self._user_app.route(self._call_environ)

    def _end_if_forked(self, *, failed: bool) -> None:
        """If this is a process that the application forked, end it: it must not answer the caller.

        If the child raised an error, the framework has made an answer 500 of it. So such an answer counts as a failure.
        """
        if os.getpid() == self._pid:
            return
        error = sys.exc_info()[1]
        status: object = int(failed)
        if isinstance(error, SystemExit):
            status = error.code
        elif error is not None:
            traceback.print_exc()
            status = 1
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))

    def _environ(self, head: receive.Head, body: receive.Buffer) -> tuple[Reply, dict[str, Any]]:
        worker = self._worker
        more = (lambda: self._begin_stream(reply), worker.limits.answer_timeout)
        created = wsgi.create(head, self._client, self._address, worker.server, worker.config, Reply, more)
        reply: Reply = created[0]
        environ: dict[str, Any] = created[1]
        environ["wsgi.input"] = receive.WholeBody(body)
        environ[ENVIRON_KEY] = self._context
        environ.pop("HTTP_UPGRADE", None)  # no other protocol is supported
        environ.pop("HTTP_TRANSFER_ENCODING", None)
        # The length of the body as it was received: chunks are joined, and the body of a read is not received.
        environ["CONTENT_LENGTH"] = str(len(body))
        if self._user_app is not None:
            self._user_app.adapt(environ, head.headers, by_gateway=bool(self._gateway))
        self._call_environ = environ
        return reply, environ

    def _deadline(self, seconds: float, on_expired: Callable[[], None]) -> Deadline:
        return Deadline(
            seconds,
            on_expired=on_expired,
            is_disconnected=lambda: receive.peer_is_gone(self._client),
            on_disconnect=self._left_while_computing,
        )

    def _begin_stream(self, reply: Reply) -> Headers:
        """Begin a streamed answer.

        From now on the watchdog closes the connection at the run timeout, because it can no longer answer 504.
        """
        left = self._worker.watchdog.disarm()
        self._worker.watchdog.arm(self._deadline(left, lambda: self._end_streamed(reply)))
        return self._added_headers()

    def _added_headers(self) -> Headers:
        timing = [] if self._run is None else [("Server-Timing", f"run;dur={self._run * 1000:.3f}")]
        return [("X-Request-ID", self._request_id), *timing]

    def _error_answer(self, error: CallError) -> list[receive.Buffer]:
        self._request_id = self._request_id or uuid.uuid4().hex
        self._status = str(error.status)
        return answer.error_answer(error, self._added_headers())

    def _answer(self, chunks: list[receive.Buffer], *, unread: bool) -> None:
        try:
            sent = answer.finish(self._client, chunks, self._worker.limits.answer_timeout, unread=unread)
        except answer.Undelivered as error:
            self._end(UNDELIVERED, error.sent)
        else:
            self._end(self._status, sent)

    def _end(self, code: str, response_bytes: int) -> None:
        held = time.monotonic() - self._accepted
        if not self._is_call and held < HELD_SECONDS:
            self._worker.reporter.released()
            return
        self._note_route()  # needed if the call ends before its answer begins
        self._worker.reporter.finished(self._context.model, code, self._run)
        fields = {
            "request_id": self._request_id,
            "gateway": self._gateway,
            "model": self._context.model,
            "version": self._context.version,
            "status": code,
            "held_seconds": held,
            "run_seconds": self._run,
            "request_bytes": self._request_bytes,
            "response_bytes": response_bytes,
        }
        if self._call_id:
            fields |= {"call_id": self._call_id, "run": self._run_number}
        write_call({name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()})

    def _drop(self) -> None:
        """End a connection without a whole request. It is no call, and counts only if it held the worker for long."""
        self._client.close()
        if time.monotonic() - self._accepted >= HELD_SECONDS:
            self._end(INCOMPLETE, 0)
        elif self._began:
            self._worker.reporter.released()

    def _left_while_queued(self) -> None:
        """Drop a whole call whose client left before it was computed."""
        self._client.close()
        self._worker.reporter.count_event("client-disconnect", state="queued")
        self._end(CLIENT_DISCONNECT, 0)

    def _left_while_computing(self, left: float) -> bool:
        if not self._client_left:
            self._client_left = True
            self._worker.reporter.count_event("client-disconnect", state="executing")
        if self._call_id or should_end(self._worker.limits.on_client_disconnect, left, self._worker.load_seconds):
            self._run = self._worker.limits.run_timeout - left
            self._end_process(CLIENT_DISCONNECT, 0, reason="client-disconnect")
        return True

    def _run_timeout(self) -> RunTimeout:
        return RunTimeout(
            f"the call computed longer than the run timeout, {self._worker.limits.run_timeout:g} s, and was ended"
        )

    def _expired(self) -> None:
        self._run = self._worker.limits.run_timeout
        code = "504"
        try:
            sent = answer.send(self._client, self._error_answer(self._run_timeout()), seconds=1.0)
            answer.discard_unread(self._client)
        except answer.Undelivered as error:
            code, sent = UNDELIVERED, error.sent
        self._end_process(code, sent, reason="run-timeout")

    def _end_streamed(self, reply: Reply) -> None:
        self._run = self._worker.limits.run_timeout
        self._end_process("504", reply.wire_bytes, reason="run-timeout")

    def _end_process(self, code: str, sent: int, reason: str) -> None:
        """End the worker from the watchdog's thread, because nothing else can stop TensorFlow. The arbiter replaces it."""
        self._end(code, sent)
        self._worker.reporter.count_event("ending", reason=reason)
        os._exit(0)
