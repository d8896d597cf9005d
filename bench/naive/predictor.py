"""The tutorials' `predictor`: a Flask app that calls `model.predict` for each request.

It resizes as our server does, so that its answers can be compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import cv2
import flask
import numpy as np

MODEL_DIR = Path(os.environ["MODEL_DIR"])
IS_KERAS = (MODEL_DIR / "model.h5").exists()

if IS_KERAS:
    from keras.models import load_model


class ScoringService:
    """The model, which the first call in each worker loads."""

    model: ClassVar[Any] = None

    @classmethod
    def get_model(cls) -> Any:
        """Return the model; load it if necessary."""
        if cls.model is None:
            if IS_KERAS:
                cls.model = load_model(MODEL_DIR / "model.h5", compile=False)
            else:
                cls.model = np.load(MODEL_DIR / "weights.npz")["weights"]
        return cls.model

    @classmethod
    def predict(cls, rows: Any) -> Any:
        """Return one answer per row."""
        model = cls.get_model()
        return model.predict(rows, verbose=0) if IS_KERAS else np.asarray(rows) @ model


app = flask.Flask(__name__)


@app.get("/ping")
def ping() -> flask.Response:
    """Answer 200 once the model is loaded."""
    return flask.Response("\n", 200 if ScoringService.get_model() is not None else 404)


@app.post("/invocations")
def invocations() -> flask.Response:
    """Score one image, or rows in JSON."""
    if flask.request.content_type == "application/json":
        predictions = ScoringService.predict(flask.request.get_json()["instances"]).tolist()
    else:
        _, height, width, _ = ScoringService.get_model().input_shape
        image = cv2.imdecode(np.frombuffer(flask.request.data, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        interpolation = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_CUBIC
        image = cv2.resize(image, (width, height), interpolation=interpolation)
        row = ScoringService.predict(image[np.newaxis].astype(np.float32))[0]
        best = [{"label": str(i), "probability": float(row[i])} for i in np.argsort(-row)[:10]]
        predictions = [{**best[0], "probabilities": best}]
    return flask.Response(json.dumps({"predictions": predictions}), 200, mimetype="application/json")
