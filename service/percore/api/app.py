"""The worker's Flask application: the routes that compute, and the read-only routes.

One call at a time, in the thread that loaded the models. ``wsgi.input.take()`` of the worker returns the whole body
without a copy, as bytes, bytearray or memoryview. The worker sends the chunks of an answer as they are. With another server,
``wsgi.input.read()`` is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, request

from percore.api import classify_regress, openinference, readonly, tfserving
from percore.api.flask_app import JSON, Answer
from percore.api.jsoncodec import Body, loads
from percore.errors import BodyTooLarge, UnsupportedMediaType
from percore.handlers import Model
from percore.model_metadata import ENVIRON_KEY, CallContext, Catalog

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Predict = Callable[[Model, Any], Answer]

_V2_TYPES = re.compile(r"(application/([\w.-]+\+)?json|application/octet-stream)?\s*(;.*)?", re.IGNORECASE)


def create_app(models: Sequence[Model], catalog: Catalog, *, max_body_bytes: int) -> Flask:
    """Return the application that serves ``models``, as ``catalog`` lists them.

    ``max_body_bytes`` bounds a body, and also the context of ``:classify`` and ``:regress`` after it is copied into each
    example.
    """
    app = Flask("percore", static_folder=None)
    readonly.register(app, lambda: catalog)
    calls = _Calls(models, catalog, max_body_bytes)
    verbs: dict[str, Predict] = {
        "predict": tfserving.predict,
        "classify": partial(classify_regress.classify, max_body_bytes=max_body_bytes),
        "regress": partial(classify_regress.regress, max_body_bytes=max_body_bytes),
    }
    for place in ("", "/versions/<version:version>", "/labels/<label:label>"):
        for verb, function in verbs.items():
            _post(app, f"/v1/models/<model:model>{place}:{verb}", partial(calls.tfserving, function))
    for place in ("", "/versions/<version:version>"):
        _post(app, f"/v2/models/<model:model>{place}/infer", calls.openinference)
    return app


def _post(app: Flask, rule: str, view: Callable[..., Answer]) -> None:
    app.add_url_rule(rule, f"POST {rule}", view, methods=["POST"])


class _Calls:
    """The views that compute."""

    def __init__(self, models: Sequence[Model], catalog: Catalog, max_body_bytes: int) -> None:
        self._models = {(model.info.name, model.info.version): model for model in models}
        self._catalog = catalog
        self._max_body_bytes = max_body_bytes

    def tfserving(self, function: Predict, model: str, version: int | None = None, label: str | None = None) -> Answer:
        """Answer one of TensorFlow Serving's verbs. Every content type is read as JSON, as TensorFlow Serving does."""
        environ = request.environ
        served = self._find(environ, model, version, label)
        return function(served, loads(self._body(environ)))

    def openinference(self, model: str, version: int | None = None) -> Answer:
        """Answer ``infer``."""
        environ = request.environ
        served = self._find(environ, model, version)
        _check_content_type(environ.get("CONTENT_TYPE", ""))
        return openinference.infer(served, self._body(environ), environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH"))

    def _find(self, environ: WSGIEnvironment, name: str, version: int | None, label: str | None = None) -> Model:
        info = self._catalog.find(name, version, label)
        context: CallContext = environ.setdefault(ENVIRON_KEY, CallContext())  # the worker has set one; another server has not
        context.model, context.version = info.name, info.version
        return self._models[info.name, info.version]

    def _body(self, environ: WSGIEnvironment) -> Body:
        coding = environ.get("HTTP_CONTENT_ENCODING", "")
        if coding.lower() not in ("", "identity"):
            raise UnsupportedMediaType(f"Content-Encoding: expected identity, got {coding!r}; send the body as it is")
        stream = environ["wsgi.input"]
        body: Body = stream.take() if hasattr(stream, "take") else stream.read()
        if len(body) > self._max_body_bytes:
            raise BodyTooLarge(f"body: expected at most {self._max_body_bytes} bytes, got {len(body)}")
        return body


def _check_content_type(value: str) -> None:
    if _V2_TYPES.fullmatch(value) is None:
        raise UnsupportedMediaType(
            f"Content-Type: expected {JSON} or {openinference.BINARY}, got {value!r}; with curl add -H 'Content-Type: {JSON}'"
        )
