"""The usual shape of a service that computes: a Flask view that calls ``predict`` on a Keras model, loaded at import.

::

    python -m demo.flask_model models/digits.keras
    gunicorn demo.flask_app:app
    percore serve demo.flask_app:app

Nothing here knows of percore. ``DEMO_MODEL`` names another file.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from flask import Flask, request

model = keras.saving.load_model(os.environ.get("DEMO_MODEL", "models/digits.keras"))
app = Flask(__name__)


@app.post("/predict")
def predict() -> dict[str, list[int]]:
    """Read handwritten digits: ``images``, 64 pixels from 0 to 16 each, become ``digits``, one for each image."""
    images = np.asarray(request.get_json()["images"], np.float32)
    return {"digits": model.predict(images, verbose=0).argmax(axis=1).tolist()}
