"""percore as pip installs it: the wheel in an environment of its own, started in a folder with modules of any name."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import requests

from harness.service import ROOT, Service

HOSTILE = (
    *("service", "percore", "settings", "logs", "sockets", "threads", "cores", "worker", "gateway"),
    *("json", "queue", "http", "logging", "asyncio", "socket"),
    *("click", "flask", "gunicorn", "numpy", "orjson", "prometheus_client", "uvloop"),
)
"""Names of modules of percore, of Python and of libraries. The folder of the user has such modules; a process that imports one
of them ends."""
PACKAGES = ("percore", "service", "tensorflow")
"""Names of hostile modules that are folders."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command ``percore`` of a new environment with the wheel. Only the libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("install")
    uv: list[str | Path] = [sys.executable, "-m", "uv", "--offline"]
    build = [*uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    [wheel] = folder.glob("percore-*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, capture_output=True, timeout=60)
    install = [*uv, "pip", "install", "--python", environment / "bin/python", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True, timeout=60)
    [packages] = environment.glob("lib/python*/site-packages")
    # Python does not read .pth files in a folder that a .pth file names. So percore is not found there, but in the wheel.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin/percore"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a user, with a handler and with modules that end the process that imports them."""
    for name in HOSTILE:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the {name} of the user was imported')\n")
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the {name} of the user was imported')\n")
    (tmp_path / "fortune.py").write_text(
        "class Fortune:\n    def load(self):\n        pass\n\n"
        "    def predict(self, inputs):\n        return {'fortune': inputs['stars'] * 3}\n"
    )
    return tmp_path


def service_of(program: Path, folder: Path) -> Service:
    service = Service()
    del service.environ["PERCORE_PORT"], service.environ["PERCORE_STATUS_PORT"]
    service.environ.pop("PYTHONPATH", None)
    ports = ("--port", str(service.port), "--status-port", str(service.status_port))
    service.commands = [["serve", "--handler", "fortune:Fortune", *ports]]
    service.program, service.cwd = [str(program)], folder
    return service


def test_the_wheel_serves_in_a_folder_whose_modules_have_the_names_of_other_modules(program: Path, folder: Path) -> None:
    with service_of(program, folder).ready(1) as service:
        answer = service.post("/v1/models/default:predict", {"inputs": {"stars": [1, 2]}})
        assert answer.json() == {"outputs": [3, 6]}
        read: requests.Response = service.get("/v1/models/default")
        assert read.status_code == 200
        assert not service.log("the ")


def test_the_code_of_the_wheel_runs(program: Path, folder: Path) -> None:
    code = "import percore; print(percore.__file__)"
    found = subprocess.run(
        [program.with_name("python"), "-P", "-c", code],
        cwd=folder,
        env={},
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert Path(found.stdout.strip()).is_relative_to(program.parent.parent)
