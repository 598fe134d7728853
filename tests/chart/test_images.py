"""The Dockerfile and the content of the images. The e2e tests run the images."""

import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from tests.chart.harness import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return dict(found)


def test_the_dockerfile_has_nothing_that_hadolint_would_warn_of() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_gateway_has_no_tensorflow_and_the_same_versions_as_the_service() -> None:
    gateway, runtime = pins("gateway.txt"), pins("runtime.txt")
    assert not gateway.keys() & {"tensorflow-cpu", "tensorflow", "keras", "numpy", "gunicorn"}
    shared = gateway.keys() & runtime.keys()
    assert {"prometheus-client", "orjson"} <= shared
    assert {name: gateway[name] for name in shared} == {name: runtime[name] for name in shared}


def test_the_gateway_is_one_python_process_behind_an_init_that_passes_signals_on() -> None:
    gateway = stages()["gateway"]
    assert 'ENTRYPOINT ["tini", "--", "python", "-P", "-m", "percore"]' in gateway
    assert 'CMD ["gateway"]' in gateway
    assert "apt-get" not in gateway, "it needs no package beyond those of the base"


def stages() -> dict[str, str]:
    """Return the text of each stage of the Dockerfile, by its name."""
    texts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {text.splitlines()[0].split(" AS ")[1]: text for text in texts}


def test_every_image_has_a_numeric_user_that_is_not_root() -> None:
    for target in ("inference", "gateway"):
        assert "USER 65532:65532" in stages()[target]
    assert "USER" not in stages()["demo"], "it keeps that of inference"


def test_the_e2e_image_has_the_three_lines_of_the_readme() -> None:
    readme = (ROOT / "deploy/README.md").read_text()
    script = (ROOT / "tests/e2e/images").read_text()
    assert "ENV PERCORE_HANDLER=fortune:Fortune" in readme
    assert "ENV PERCORE_HANDLER=fortune:Fortune" in script


def test_the_gateway_reaches_the_api_server_with_the_part_of_the_client_in_its_image(tmp_path: Path) -> None:
    """The stage of the gateway removes most of the client of Kubernetes.

    The rest must list slices over HTTP, with the credentials of a file.
    """
    removed = re.findall(r"site-packages/(kubernetes/\S+)", stages()["gateway-libraries"])
    assert sorted(removed) == ["kubernetes/aio", "kubernetes/client/api", "kubernetes/client/models"]
    installed = Path(str(importlib.util.find_spec("kubernetes").submodule_search_locations[0]))  # type: ignore[union-attr,index]

    def drop(folder: str, names: list[str]) -> set[str]:
        where = (Path("kubernetes") / Path(folder).relative_to(installed)).as_posix()
        if where.startswith(removed[0]):
            return set(names)
        return {name for name in names if where.startswith(tuple(removed)) and not name.startswith("__init__")}

    shutil.copytree(installed, tmp_path / "kubernetes", ignore=drop)
    with ApiServer() as server:
        (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig(server.server_address[1])))
        environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'service'}", "KUBECONFIG": str(tmp_path / "kubeconfig")}
        done = subprocess.run(
            [sys.executable, "-c", LISTS], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "kubernetes/__init__.py"), "('10.0.0.7',)", "Bearer-secret"]


LISTS = """
import kubernetes
from percore.gateway import cluster, gateway_settings
of = cluster.Cluster(gateway_settings.load({"PERCORE_GATEWAY_SERVICE": "inference"}).gateway)
found = []
try:
    of.follow_once(found.append)
except OSError as error:
    said = str(error)
print(kubernetes.__file__, tuple(each.address for each in found[0]), said.rpartition("said ")[2])
"""


def kubeconfig(port: int) -> dict[str, Any]:
    return {
        "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "a", "user": {"token": "secret"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }


class ApiServer(http.server.HTTPServer):
    """Lists one slice. Answers a watch with an ERROR event that quotes the credentials of the request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        endpoints = [{"addresses": ["10.0.0.7"], "targetRef": {"kind": "Pod", "name": "a"}}]
        listed = {"addressType": "IPv4", "metadata": {"name": "s", "resourceVersion": "1"}, "endpoints": endpoints}
        watched = {"type": "ERROR", "object": {"message": "said " + self.headers["Authorization"].replace(" ", "-")}}
        document = watched if "watch=true" in self.path else {"metadata": {"resourceVersion": "1"}, "items": [listed]}
        body = json.dumps(document).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (the name of http.server)
        pass
