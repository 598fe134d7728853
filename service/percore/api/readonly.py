"""The routes that only read: status, metadata, health, the OpenAPI document. Worker and status server both have them.

Sources: https://www.tensorflow.org/tfx/serving/api_rest and the Open Inference Protocol, version 2. Imports no numpy: the
status server must stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

from percore import __version__
from percore.api.flask_app import Answer, json_answer, prepare
from percore.api.openapi import document as openapi_document
from percore.dtypes import BY_NAME
from percore.errors import NotReady
from percore.model_metadata import DEFAULT_SIGNATURE, Catalog, ModelInfo, Signature, TensorSpec

CurrentCatalog = Callable[[], Catalog | None]
"""Returns the present catalog; None while nothing is loaded."""

EXTENSIONS = ["binary_tensor_data"]

_V1, _V2 = "/v1/models/<model:model>", "/v2/models/<model:model>"
_VERSION, _LABEL = "/versions/<version:version>", "/labels/<label:label>"


def register(app: Flask, current: CurrentCatalog) -> None:
    """Set an application up and add the routes to it.

    ``current`` is called for each request. While no model is loaded, all routes except ``/v2`` and ``/v2/health/live`` answer
    503 ``not-ready``.
    """
    prepare(app)
    routes = _Routes(current)
    for place in ("", _VERSION, _LABEL):
        _get(app, f"{_V1}{place}", routes.status)
        _get(app, f"{_V1}{place}/metadata", routes.metadata)
    for place in ("", _VERSION):
        _get(app, f"{_V2}{place}", routes.model)
        _get(app, f"{_V2}{place}/ready", routes.model_ready)
    _get(app, "/v2", routes.server)
    _get(app, "/v2/health/live", routes.live)
    _get(app, "/v2/health/ready", routes.ready)
    _get(app, "/openapi.json", routes.openapi)


def _get(app: Flask, rule: str, view: Callable[..., Answer]) -> None:
    app.add_url_rule(rule, f"GET {rule.replace('.', '_')}", view, methods=["GET"])  # a dot would mean a blueprint


class _Routes:
    """The views; each builds its answer from the catalog alone."""

    def __init__(self, current: CurrentCatalog) -> None:
        self._current = current

    def _catalog(self) -> Catalog:
        catalog = self._current()
        if catalog is None:
            raise NotReady("no model is loaded yet")
        return catalog

    def status(self, model: str, version: int | None = None, label: str | None = None) -> Answer:
        """Answer TensorFlow Serving's model status: of every version, or of the requested one."""
        catalog = self._catalog()
        every = version is None and label is None
        versions = catalog.versions(model) if every else (catalog.find(model, version, label),)
        return json_answer({"model_version_status": [_status(info) for info in versions]})

    def metadata(self, model: str, version: int | None = None, label: str | None = None) -> Answer:
        """Answer TensorFlow Serving's metadata: the signatures of one version."""
        info = self._catalog().find(model, version, label)
        signatures = {name: _signature(signature) for name, signature in info.signatures.items()}
        spec = {"name": info.name, "signature_name": "", "version": str(info.version)}
        return json_answer({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})

    def server(self) -> Answer:
        """Answer the Open Inference Protocol's server metadata."""
        return json_answer({"name": "percore", "version": __version__, "extensions": EXTENSIONS})

    def live(self) -> Answer:
        """Answer that this process is alive."""
        return json_answer({"live": True})

    def ready(self) -> Answer:
        """Answer that models are loaded. A service whose workers all compute is ready too."""
        self._catalog()
        return json_answer({"ready": True})

    def model(self, model: str, version: int | None = None) -> Answer:
        """Answer the Open Inference Protocol's model metadata, of the default signature."""
        catalog = self._catalog()
        info = catalog.find(model, version)
        signature = info.signatures.get(DEFAULT_SIGNATURE, Signature((), ()))
        return json_answer(
            {
                "name": info.name,
                "versions": [str(each.version) for each in catalog.versions(model)],
                "platform": info.platform,
                "inputs": _tensors(signature.inputs),
                "outputs": _tensors(signature.outputs),
                **({"parameters": {"digest": info.digest}} if info.digest else {}),
            }
        )

    def model_ready(self, model: str, version: int | None = None) -> Answer:
        """Answer that a version is loaded; every version in the catalog is."""
        info = self._catalog().find(model, version)
        return json_answer({"name": info.name, "ready": True})

    def openapi(self) -> Answer:
        """Answer the description of every route, with the models that are served now."""
        return json_answer(openapi_document(self._catalog()))


def _status(info: ModelInfo) -> dict[str, Any]:
    return {
        "version": str(info.version),
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
        **({"digest": info.digest} if info.digest else {}),
    }


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {spec.name: _tensor_info(spec) for spec in signature.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in signature.outputs},
        "method_name": signature.method,
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    """Return TensorFlow's TensorInfo.

    ``name`` is the input's name. TensorFlow would write the name of a tensor in its graph.
    """
    dims = [{"size": str(-1 if size is None else size), "name": ""} for size in spec.shape or ()]
    shape = {"dim": dims, "unknown_rank": spec.shape is None}
    return {"dtype": BY_NAME[spec.dtype].tensorflow, "tensor_shape": shape, "name": spec.name}


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    """Return the Open Inference Protocol's tensors. The protocol cannot describe an unknown rank; here it is [-1]."""
    return [
        {
            "name": spec.name,
            "datatype": BY_NAME[spec.dtype].openinference,
            "shape": [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape],
        }
        for spec in specs
    ]
