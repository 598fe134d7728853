"""Every error percore raises on purpose, and the one place where an error becomes a status.

::

    PercoreError
    ├── StartError                what stops a process before it serves; never seen by a caller
    │   ├── SettingsError         a setting breaks its rule
    │   └── LoadError             a model, or a user's handler, cannot be loaded
    └── CallError                 what a caller gets: a status, a code, a sentence
        ├── BadInput              400 bad-input
        │   └── BadRequest        400 bad-request: not even HTTP
        ├── NotFound              404 not-found
        ├── MethodNotAllowed      405 method-not-allowed
        ├── BodyTimeout           408 body-timeout
        ├── NotFinished           409 not-finished: a stored call has not ended, or ended without a result
        ├── Gone                  410 gone: a stored call that was erased
        ├── BodyTooLarge          413 body-too-large
        ├── UnsupportedMediaType  415 unsupported-media-type
        ├── RangeNotSatisfiable   416 range-not-satisfiable
        ├── IdempotencyKeyReused  422 idempotency-key-reused
        ├── QueueFull             429 queue-full: never ran
        ├── HandlerFailed         500 handler-failed
        ├── GatewayFailed         500 gateway-failed: a fault of percore
        ├── PodLost               502 pod-lost: ended together with its pod
        ├── NotReady              503 not-ready: no model is loaded yet
        ├── Overloaded            503 overloaded: no room to receive the call; never ran
        ├── QueueTimeout          503 queue-timeout: queued longer than the limit; never ran
        ├── RunTimeout            504 run-timeout
        └── ResultTooLarge        507 result-too-large: a stored call whose result has no room

Anyone may import this module; it imports nothing of percore.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

START_FAILED = 78
"""Exit status of a process whose settings or models keep it from starting: EX_CONFIG of sysexits.h."""


class PercoreError(Exception):
    """The root of the tree."""


class StartError(PercoreError):
    """A process cannot start to serve. The message is the only line that the operator sees."""


class SettingsError(StartError):
    """A setting breaks its rule; the message names the key, the value and the rule."""


class LoadError(StartError):
    """A model or a handler cannot be loaded; the message names which, and why."""


class CallError(PercoreError):
    """An error that a caller gets as its answer.

    ``retry_after`` (whole seconds) becomes a ``Retry-After`` header; None: the answer has none.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "handler-failed"
    retry_after: ClassVar[int | None] = None

    def document(self) -> dict[str, str]:
        """Return the JSON body a caller gets: ``{"error": sentence, "code": code}``."""
        return {"error": str(self), "code": self.code}


class BadInput(CallError):
    """The input breaks a rule; the message names the field, the rule and the value.

    A user's handler may raise it too, so that the answer is 400 instead of 500.
    """

    status = 400
    code = "bad-input"


class BadRequest(BadInput):
    """The request is not well-formed HTTP."""

    code = "bad-request"


class NotFound(CallError):
    """No such route, model, version or label."""

    status = 404
    code = "not-found"


class MethodNotAllowed(CallError):
    """The route exists, but not for this method. ``allowed`` becomes an ``Allow`` header."""

    status = 405
    code = "method-not-allowed"

    def __init__(self, method: str, route: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed on {route}; allowed: {allowed}")
        self.allowed = allowed


class BodyTimeout(CallError):
    """The client took longer than the body timeout to send its request."""

    status = 408
    code = "body-timeout"


class NotFinished(CallError):
    """The stored call has not ended, or it ended without a result."""

    status = 409
    code = "not-finished"


class Gone(CallError):
    """The stored call was erased: its retention is over, or a client deleted it."""

    status = 410
    code = "gone"


class RangeNotSatisfiable(CallError):
    """The requested range begins after the end of the result."""

    status = 416
    code = "range-not-satisfiable"


class IdempotencyKeyReused(CallError):
    """The idempotency key was sent before with another request."""

    status = 422
    code = "idempotency-key-reused"


class BodyTooLarge(CallError):
    """The body is over the size limit, or the copies of its ``context`` together are over it."""

    status = 413
    code = "body-too-large"


class UnsupportedMediaType(CallError):
    """The body has a content type or coding that this route does not read."""

    status = 415
    code = "unsupported-media-type"


class HandlerFailed(CallError):
    """The model or the user's handler raised; the log has the trace, the caller does not."""

    def __init__(self, message: str = "the model failed; the log of the service has the reason") -> None:
        super().__init__(message)


class GatewayFailed(CallError):
    """A fault of the gateway itself; whether the call ran is not known."""

    code = "gateway-failed"

    def __init__(self, message: str = "the gateway failed; its log has the reason") -> None:
        super().__init__(message)


class PodLost(CallError):
    """The pod went away while it computed the call; the call is not sent to another pod."""

    status = 502
    code = "pod-lost"


class QueueFull(CallError):
    """The queue is full; this call never ran."""

    status = 429
    code = "queue-full"
    retry_after = 10


class Overloaded(CallError):
    """There is no room to receive the call now, and it never ran."""

    status = 503
    code = "overloaded"
    retry_after = 5


class QueueTimeout(CallError):
    """The call was queued longer than the limit, and never ran."""

    status = 503
    code = "queue-timeout"
    retry_after = 10


class NotReady(CallError):
    """No worker has loaded its models yet."""

    status = 503
    code = "not-ready"
    retry_after = 5


class RunTimeout(CallError):
    """The call computed longer than the run timeout; its worker is replaced."""

    status = 504
    code = "run-timeout"


class ResultTooLarge(CallError):
    """There is no room to store the result of a stored call. If the call still computes, its worker ends and is replaced."""

    status = 507
    code = "result-too-large"


def call_errors(root: type[CallError] = CallError) -> Iterator[type[CallError]]:
    """Yield every class of this module below ``root``. The OpenAPI document lists them as possible answers."""
    for child in root.__subclasses__():
        if child.__module__ == __name__:  # not those of a user's code: the document must be the same in each process
            yield child
        yield from call_errors(child)
