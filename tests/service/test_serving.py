"""Real models, called over HTTP as users call them."""

import concurrent.futures
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import requests

from demo.try_it import SEVEN
from harness.service import FAULTY, ROOT, Service, answer_of, eventually

GRAPH_MODE = "Model.predict in graph mode is not supported when the Model was constructed with eager mode enabled"


def test_digits_reads_a_seven(served: Service) -> None:
    answer = served.post("/v1/models/digits:predict", {"instances": [SEVEN]})
    assert answer.status_code == 200
    (prediction,) = answer.json()["predictions"]
    assert prediction["digit"] == 7
    assert sum(prediction["probabilities"]) == pytest.approx(1.0, abs=1e-3)


def test_the_form_type_that_curl_sends_is_read_as_json(served: Service) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = served.post("/v1/models/digits:predict", data=json.dumps({"inputs": [SEVEN]}), headers=headers)
    assert answer.json()["outputs"]["digit"] == [7]


@pytest.mark.parametrize("place", ["/versions/1", "/versions/2", "/labels/stable", "/labels/canary", ""])
def test_versions_and_labels_are_called(served: Service, place: str) -> None:
    answer = served.post(f"/v1/models/digits{place}:predict", {"instances": [SEVEN]})
    assert answer.json()["predictions"][0]["digit"] == 7


def test_tf1_tf2_and_keras_models_answer_every_call_at_any_concurrency(served: Service) -> None:
    """The error about graph mode and eager mode cannot occur: a model is called only by its concrete function, in the process
    and the thread that loaded it.
    """
    served.ready(workers=2)
    workers = served.workers

    def call(number: int) -> str:
        model = ("tf1", "tf2", "keras")[number % 3]
        answer = served.post(f"/v1/models/{model}:predict", {"instances": [{"x": [number, 1]}]})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"predictions": [[2.0 * number + 4]]}
        return answer.text

    with concurrent.futures.ThreadPoolExecutor(24) as callers:
        answers = list(callers.map(call, range(300)))
    assert len(answers) == 300
    assert GRAPH_MODE not in served.log_path.read_text()
    assert served.workers == workers


def test_classify_and_regress_are_answered(served: Service) -> None:
    examples = {"signature_name": "classify", "examples": [{"x": [1.0, 2.0]}]}
    result = served.post("/v1/models/tf1:classify", examples).json()["results"]
    assert result == [[["up", 9.0], ["down", -9.0]]]
    examples["signature_name"] = "regress"
    assert served.post("/v1/models/tf1:regress", examples).json()["results"] == [9.0]


def test_bytes_and_other_signatures_are_called(served: Service) -> None:
    body = {"signature_name": "upper", "instances": [{"text": {"b64": "aGVsbG8="}}, {"text": "you"}]}
    assert served.post("/v1/models/tf2:predict", body).json() == {"predictions": ["HELLO", "YOU"]}


def test_nan_and_infinities_go_in_and_come_out(served: Service) -> None:
    answer = served.post("/v1/models/keras:predict", data='{"instances": [[NaN, 0], [Infinity, 0], [-Infinity, 0]]}')
    assert answer.text == '{"predictions":[[NaN],[Infinity],[-Infinity]]}'


def test_the_open_inference_protocol_is_answered_in_json_and_in_binary(served: Service) -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    answer = served.post("/v2/models/keras/infer", {"id": "7", "inputs": [{**tensor, "data": [1, 1, 2, 1]}]})
    assert answer.json()["id"] == "7"
    assert answer.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [6.0, 8.0]}]
    values = struct.pack("<4f", 1, 1, 2, 1)
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}], "parameters": {"binary_data_output": True}}
    head = json.dumps(binary).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    answer = served.post("/v2/models/keras/infer", data=head + values, headers=headers)
    size = int(answer.headers["Inference-Header-Content-Length"])
    assert np.frombuffer(answer.content[size:], np.float32).tolist() == [6.0, 8.0]


def test_reads_are_answered_alike_on_both_ports(served: Service) -> None:
    for path in ("/v1/models/digits", "/v1/models/tf1/metadata", "/v2", "/v2/models/keras", "/openapi.json"):
        status, calls = served.get(path), requests.get(served.url(path), timeout=5)
        assert (status.status_code, calls.status_code) == (200, 200)
        assert status.json() == calls.json()


def test_a_request_id_is_given_or_kept(served: Service) -> None:
    body = {"instances": [SEVEN]}
    kept = served.post("/v1/models/digits:predict", body, headers={"X-Request-ID": "mine-1"})
    assert kept.headers["X-Request-ID"] == "mine-1"
    assert eventually(lambda: [line for line in served.runs() if line["request_id"] == "mine-1"])
    given = served.post("/v1/models/digits:predict", body, headers={"X-Request-ID": "no spaces, please"})
    assert given.headers["X-Request-ID"] != "no spaces, please"


def test_every_call_is_a_line_of_its_worker_and_one_of_the_gateway(served: Service) -> None:
    answer = served.post("/v1/models/digits/versions/1:predict", {"instances": [SEVEN]})
    name = answer.headers["X-Request-ID"]
    (line,) = eventually(lambda: [each for each in served.runs() if each["request_id"] == name])
    assert line["model"] == "digits"
    assert line["version"] == 1
    assert line["status"] == "200"
    assert line["request_bytes"] == len(answer.request.body or b"")
    assert line["response_bytes"] > len(answer.content)
    assert line["run_seconds"] > 0
    (line,) = eventually(lambda: [each for each in served.calls() if each["request_id"] == name])
    assert line["status"] == 200
    assert line["pod"] in ("worker-0", "worker-1")
    assert line["queue_seconds"] >= 0
    assert line["total_seconds"] >= line["run_seconds"] > 0


def test_tensorflow_computes_a_call_on_as_many_threads_as_it_has_cores(repository: Path) -> None:
    code = (
        "import tensorflow as tf; from percore import settings; from percore.model_store import load_models;"
        "load_models(settings.load(), threads=3); threading = tf.config.threading;"
        "print(threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads())"
    )
    environ = {**os.environ, "PERCORE_MODEL_REPOSITORY": str(repository)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["3", "3"]


def test_each_worker_has_a_core_of_its_own(served: Service) -> None:
    served.ready(workers=2)
    cores = [os.sched_getaffinity(pid) for pid in served.workers]
    assert all(len(each) == 1 for each in cores)
    assert len(set.union(*cores)) == len(cores)


def test_the_watchdog_ends_a_call_that_is_inside_tensorflow(repository: Path) -> None:
    with Service(model_repository=repository, run_timeout=1).ready(workers=2) as service:
        answer = service.post("/v1/models/burn:predict", {"inputs": [10**9]})
        assert answer.status_code == 504
        assert answer.json()["code"] == "run-timeout"
        # The client of a call inside TensorFlow goes away: its worker ends within a second.
        before = set(service.workers)
        connection = service.connect()
        connection.sendall(service.raw(b'{"inputs": [1000000000]}', "/v1/models/burn:predict"))
        service.until(executing=1)
        connection.close()
        left = time.monotonic()
        eventually(lambda: service.metric("percore_worker_client_disconnects_total", state="executing") == 1)
        assert time.monotonic() - left < 1.0
        eventually(lambda: len(before & set(service.workers)) <= 1)
        service.ready(workers=2)
        assert service.post("/v1/models/burn:predict", {"inputs": [10]}).status_code == 200


def test_sigterm_lets_a_call_inside_tensorflow_finish(repository: Path) -> None:
    with Service(model_repository=repository).ready(workers=1) as service:
        connection = service.connect()
        connection.sendall(service.raw(b'{"inputs": [20000]}', "/v1/models/burn:predict"))
        service.until(executing=1)
        service.processes[0].send_signal(signal.SIGTERM)
        status, _, body = answer_of(connection)
        assert status == 200
        assert json.loads(body)["outputs"]["steps"] == [20000]
        assert service.processes[0].wait(20) == 0


def test_a_users_own_modules_do_not_take_the_place_of_ours_or_of_a_library(tmp_path: Path) -> None:
    for name in ("service", "percore", "settings", "logs", "click", "gunicorn", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s own {name} was imported')\n")
    (tmp_path / "mine.py").write_text("FACTOR = 3\n")
    (tmp_path / "fortune.py").write_text(
        "import mine\n\n\n"
        "class Fortune:\n    def load(self):\n        pass\n\n"
        "    def predict(self, inputs):\n        return {'fortune': inputs['stars'] * mine.FACTOR}\n"
    )
    service = Service()
    service.commands = [["serve", "--handler", "fortune:Fortune"]]
    service.program, service.cwd = [str(Path(sys.executable).with_name("percore"))], tmp_path
    with service.ready(1):
        answer = service.post("/v1/models/default:predict", {"inputs": {"stars": [1, 2]}})
        assert answer.json() == {"outputs": [3, 6]}


def test_an_option_overrides_its_environment_variable() -> None:
    service = Service(handler="nothing:Nothing", host="192.0.2.1", port=1, status_port=1)
    ports = ("--host", "127.0.0.1", "--port", str(service.port), "--status-port", str(service.status_port))
    service.commands = [["serve", "--handler", FAULTY, *ports]]
    with service.ready(1):
        assert service.call(sleep=0).status_code == 200


def test_a_model_with_a_custom_class_is_served_if_a_module_registers_the_class(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import keras\n\n\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Triple(keras.layers.Layer):\n    def call(self, inputs):\n        return inputs * 3\n"
    )
    program = "import keras, mine; keras.Sequential([keras.Input((2,)), mine.Triple()]).save('models/m/1/model.keras')"
    (tmp_path / "models/m/1").mkdir(parents=True)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True, timeout=60)
    service = Service(model_repository="models")
    service.environ["PERCORE_IMPORT"] = "mine"
    service.cwd = tmp_path
    with service.ready(1):
        answer = service.post("/v1/models/m:predict", {"instances": [[1, 2]]})
        assert answer.json() == {"predictions": [[3, 6]]}


def test_a_version_of_twenty_digits_ends_the_service_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "m/20251231235959000000"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").touch()
    with Service(model_repository=tmp_path) as service:
        assert service.processes[0].wait(30) == 78
        lines = {line["message"] for line in service.log("cannot start: ")}
    [line] = lines
    assert line.endswith("20251231235959000000: a version must be at most 9223372036854775807")


def test_a_variable_of_gunicorn_s_that_breaks_its_rule_ends_the_service_with_one_line() -> None:
    service = Service(handler="percore.handlers.echo:Echo")
    service.environ["FORWARDED_ALLOW_IPS"] = "10.0.0.1, proxy"
    with service:
        assert service.processes[0].wait(60) == 78
        assert "FORWARDED_ALLOW_IPS='10.0.0.1, proxy': must be `*`, or addresses and networks" in service.log_path.read_text()


def test_the_number_of_workers_that_gunicorn_would_read_changes_nothing() -> None:
    service = Service(handler="percore.handlers.echo:Echo")
    service.environ["WEB_CONCURRENCY"] = "auto"
    with service.ready(workers=2):
        assert service.call(x=1).status_code == 200
