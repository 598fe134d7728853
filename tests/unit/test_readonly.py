import subprocess
import sys
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from percore import __version__
from percore.api import readonly
from percore.model_metadata import Catalog, ModelInfo, TensorSpec

from tests.fakes import catalog_of, example_model, handler, model, spec

SERVED = catalog_of(
    model([spec("x", "float32", None, 2)], outputs=[spec("y", "bytes")], version=1, labels=("stable",)),
    model([TensorSpec("x", "bfloat16", None)], version=2),
    handler(),
    example_model(),
)
NOT_READY = {"error": "no model is loaded yet", "code": "not-ready"}


def client_of(catalog: Catalog | None) -> FlaskClient:
    app = Flask("status")
    readonly.register(app, lambda: catalog)
    return app.test_client()


def get(path: str) -> Any:
    response: Any = client_of(SERVED).get(path)
    assert response.status_code == 200, response.data
    assert response.content_type == "application/json"
    return response.json


def test_nothing_here_needs_numpy() -> None:
    code = "import sys, percore.api.readonly; print([name for name in ('numpy', 'orjson') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def available(*versions: str) -> dict[str, Any]:
    status = {"error_code": "OK", "error_message": ""}
    return {"model_version_status": [{"version": each, "state": "AVAILABLE", "status": status} for each in versions]}


@pytest.mark.parametrize(("place", "versions"), [("", ["2", "1"]), ("/versions/1", ["1"]), ("/labels/stable", ["1"])])
def test_status_lists_every_version_or_the_one_asked_for(place: str, versions: list[str]) -> None:
    assert get(f"/v1/models/m{place}") == available(*versions)


@pytest.mark.parametrize("place", ["/versions/1", "/labels/stable"])
def test_metadata_has_the_form_of_tensorflow_serving(place: str) -> None:
    sizes = [{"size": "-1", "name": ""}, {"size": "2", "name": ""}]
    assert get(f"/v1/models/m{place}/metadata") == {
        "model_spec": {"name": "m", "signature_name": "", "version": "1"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {
                            "x": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": "x"}
                        },
                        "outputs": {
                            "y": {"dtype": "DT_STRING", "tensor_shape": {"dim": [], "unknown_rank": False}, "name": "y"}
                        },
                        "method_name": "tensorflow/serving/predict",
                    }
                }
            }
        },
    }


def test_metadata_tells_an_unknown_rank_and_the_methods() -> None:
    signatures = get("/v1/models/m/metadata")["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["tensor_shape"] == {"dim": [], "unknown_rank": True}
    methods = get("/v1/models/examples/metadata")["metadata"]["signature_def"]["signature_def"]
    assert {name: each["method_name"].rpartition("/")[2] for name, each in methods.items()} == {
        "serving_default": "classify",
        "regression": "regress",
        "plain": "predict",
    }


def test_open_inference_metadata_is_that_of_the_default_signature() -> None:
    assert get("/v2/models/m/versions/1") == {
        "name": "m",
        "versions": ["2", "1"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": []}],
    }
    assert get("/v2/models/m")["inputs"] == [{"name": "x", "datatype": "BF16", "shape": [-1]}]
    assert get("/v2/models/handler") == {
        "name": "handler",
        "versions": ["1"],
        "platform": "percore_handler",
        "inputs": [],
        "outputs": [],
    }


def test_a_digest_is_shown_if_it_is_known() -> None:
    client = client_of(Catalog((ModelInfo("m", 1, "keras", {}, digest="sha256:1"),)))
    status: Any = client.get("/v1/models/m").json
    metadata: Any = client.get("/v2/models/m").json
    assert status["model_version_status"][0]["digest"] == "sha256:1"
    assert metadata["parameters"] == {"digest": "sha256:1"}


def test_health_and_the_server_are_described() -> None:
    assert get("/v2") == {"name": "percore", "version": __version__, "extensions": ["binary_tensor_data"]}
    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    assert get("/v2/models/m/ready") == {"name": "m", "ready": True}
    assert get("/v2/models/m/versions/1/ready") == {"name": "m", "ready": True}
    assert get("/openapi.json")["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    "path", ["/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v1/models/m", "/v1/models/m/metadata", "/openapi.json"]
)
def test_while_nothing_is_loaded_routes_answer_503_with_retry_after(path: str) -> None:
    response: Any = client_of(None).get(path)
    assert response.status_code == 503
    assert response.json == NOT_READY
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live"])
def test_the_process_itself_answers_while_nothing_is_loaded(path: str) -> None:
    assert client_of(None).get(path).status_code == 200


def test_the_catalog_is_asked_for_again_at_each_request() -> None:
    catalogs: list[Catalog | None] = [Catalog((ModelInfo("m", 1, "keras", {}),)), None]
    app = Flask("status")
    readonly.register(app, catalogs.pop)
    client = app.test_client()
    assert [client.get("/v2/health/ready").status_code for _ in range(2)] == [503, 200]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/none",
        "/v1/models/m/versions/9",
        "/v1/models/m/labels/none/metadata",
        "/v2/models/none",
        "/v2/models/none/ready",
        "/nowhere",
    ],
)
def test_an_unknown_model_is_404_in_the_usual_form_of_errors(path: str) -> None:
    response: Any = client_of(SERVED).get(path)
    assert response.status_code == 404
    assert response.json.keys() == {"error", "code"}
    assert response.json["code"] == "not-found"


@pytest.mark.parametrize("path", ["/v2", "/v1/models/m", "/v1/models/none", "/openapi.json"])
def test_head_answers_as_get_does_without_the_body(path: str) -> None:
    head, whole = client_of(SERVED).head(path), client_of(SERVED).get(path)
    assert head.status_code == whole.status_code
    assert head.data == b""
    assert head.headers["Content-Length"] == str(len(whole.data))


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "DELETE"])
def test_other_methods_are_refused(method: str) -> None:
    response: Any = client_of(SERVED).open("/v2", method=method)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD"}
    assert response.json["code"] == "method-not-allowed"


def test_no_cookie_is_ever_set() -> None:
    client = client_of(SERVED)
    client.set_cookie("session", "x")
    assert "Set-Cookie" not in client.get("/v2").headers


def test_a_failure_of_a_route_has_the_usual_form_of_errors(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("status")

    def broken() -> Catalog:
        raise OSError("secret")

    readonly.register(app, broken)
    response: Any = app.test_client().get("/v2/health/ready")
    assert response.status_code == 500
    assert response.json["code"] == "handler-failed"
    assert "secret" not in response.json["error"]
    assert len(caplog.records) == 1
