"""Code for the Flask applications of both worker and status server: answers, errors, and converters for names in paths.

Imports no numpy: the status server must stay small.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request
from flask.sessions import NullSession, SessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from percore.errors import (
    BadRequest,
    BodyTooLarge,
    CallError,
    HandlerFailed,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Chunk = bytes | memoryview
"""One piece of an answer's body. A memoryview must be one-dimensional and of bytes, so that ``len`` is its size."""

JSON = "application/json"
_LOG = logging.getLogger("percore.api")
_BY_STATUS: Mapping[int, type[CallError]] = {
    each.status: each for each in (BadRequest, NotFound, BodyTooLarge, UnsupportedMediaType)
}


class Answer(Response):
    """A response whose body is a list of bytes-like chunks, handed to the server as they are.

    werkzeug's own call copies and re-encodes every header, which costs as much as all the rest of an empty call.
    """

    def __init__(self, chunks: Sequence[Chunk], status: int = 200, content_type: str = JSON, **headers: str) -> None:
        """``headers`` are more headers, with ``_`` for ``-`` in their names."""
        lines = [("Content-Type", content_type), ("Content-Length", str(sum(map(len, chunks))))]
        lines.extend((name.replace("_", "-"), value) for name, value in headers.items())
        super().__init__(status=status, headers=lines)
        self.response = chunks  # type: ignore[assignment]  # werkzeug knows no memoryview

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as a WSGI application; a HEAD request gets the headers alone."""
        start_response(self.status, self.headers.to_wsgi_list())
        return () if environ["REQUEST_METHOD"] == "HEAD" else self.response  # type: ignore[return-value]


def json_answer(document: Any, status: int = 200, **headers: str) -> Answer:
    """Answer with plain JSON values. Text in them is written as ASCII, so every text is safe."""
    return Answer([json.dumps(document, separators=(",", ":")).encode()], status, **headers)


def error_answer(error: CallError) -> Answer:
    """Return the answer to the caller for ``error``."""
    headers = {} if error.retry_after is None else {"Retry_After": str(error.retry_after)}
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    return json_answer(error.document(), error.status, **headers)


def _on_failure(error: Exception) -> Answer:
    """Log once why the model failed. The answer does not contain the reason."""
    reason = error.__cause__ if isinstance(error, HandlerFailed) else error
    _LOG.error("%s %s: the model failed", request.method, request.path, exc_info=reason)
    return error_answer(HandlerFailed())


def _on_http_error(error: HTTPException) -> Answer:
    status = error.code or 500
    kind = _BY_STATUS.get(status, BadRequest if status < 500 else HandlerFailed)
    if status == 405:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return error_answer(MethodNotAllowed(request.method, _path(), allowed))
    message = f"no route {_path()}; GET /openapi.json lists them" if status == 404 else str(error.description)
    return error_answer(kind(message))


def _path() -> str:
    path = request.path
    return repr(path if len(path) <= 100 else path[:100] + "...")


class _Name(BaseConverter):
    """A model's name, or a label. It holds no colon, which separates it from TensorFlow Serving's verb."""

    regex = "[^/:]+"


class _Version(BaseConverter):
    """A version's number, as large as TensorFlow Serving's (63 bits)."""

    regex = "[0-9]{1,19}"

    def to_python(self, value: str) -> int:
        return int(value)


class _NoSession(SessionInterface):
    """Sessions are not used, and no cookies are read or written. All calls share one empty session."""

    _session = NullSession()

    def open_session(self, app: Flask, request: Any) -> NullSession:  # noqa: ARG002
        return self._session


def prepare(app: Flask) -> None:
    """Set an application up: every error is answered as ``CallError.document``, and there are no sessions and no OPTIONS.

    Its routes may then use the converters ``model``, ``label`` and ``version``. A second call changes nothing.
    """
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.session_interface = _NoSession()
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters.update(model=_Name, label=_Name, version=_Version)
    app.register_error_handler(CallError, error_answer)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(HandlerFailed, _on_failure)
    app.register_error_handler(Exception, _on_failure)
