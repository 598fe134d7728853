"""The Flask application that people write, for Gunicorn to run: ``bench.baseline:burn()`` and its siblings.

The comparison is fair: each worker loads the model when it starts, warms it up once, and calls it by its signature. Each answer
also says when, how long and on which core the handler ran. That is the only difference from a plain application.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from flask import Flask, request

Compute = Callable[[list[Any]], list[Any]]
_libc = ctypes.CDLL(None)


def _app(compute: Compute) -> Flask:
    app = Flask("baseline")

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        # The worker is busy for a moment, so that another worker takes the next connection.
        time.sleep(float(request.args.get("hold", "0")))
        return {"pid": os.getpid()}

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        inputs = request.get_json()["inputs"]
        core, started = _libc.sched_getcpu(), time.monotonic()
        outputs = compute(inputs)
        return {"outputs": outputs, "started": started, "run": time.monotonic() - started, "core": core}

    return app


def burn() -> Flask:
    """Compute ``inputs[0]`` steps of the demo model ``burn``, in ``BASELINE_MODEL``, on ``BASELINE_THREADS`` threads."""
    # Keras imports scikit-learn, which is installed here to train the demo models. Without it a server starts in four fifths of
    # the time.
    sys.modules.setdefault("sklearn", cast("Any", None))
    import tensorflow as tf  # noqa: PLC0415 - not in the arbiter, and not for the handlers below

    if threads := int(os.environ.get("BASELINE_THREADS", "0")):
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = tf.saved_model.load(os.environ["BASELINE_MODEL"])
    serve = model.signatures["serving_default"]

    def compute(inputs: list[Any]) -> list[Any]:
        found: list[Any] = serve(steps=tf.constant(inputs, tf.int64))["checksum"].numpy().tolist()
        return found

    compute([1])
    app = _app(compute)
    app.extensions["model"] = model  # it owns the variables of the signature
    return app


def sleep() -> Flask:
    """Wait ``inputs[0]`` seconds without computing."""

    def compute(inputs: list[Any]) -> list[Any]:
        time.sleep(inputs[0])
        return inputs

    return _app(compute)


def echo() -> Flask:
    """Answer with the input, and do nothing else."""
    app = Flask("echo")

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        return {"outputs": request.get_json()["inputs"]}

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"pid": os.getpid()}

    return app
