"""The examples of docs/stored-calls.md, run unchanged with a real service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.service import MODELS, ROOT, Service

PAGE = (ROOT / "docs/stored-calls.md").read_text()
ANSWER = re.compile(r"checksum.*steps.*30000", re.DOTALL)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    models = tmp_path_factory.mktemp("models")
    (models / "burn").symlink_to(MODELS / "burn")
    with Service(model_repository=models).ready() as running:
        yield running


def run(service: Service, language: str, command: list[str], file: Path) -> str:
    """Run the first example of a language; return what it prints."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    file.write_text(found[1])
    environ = {**os.environ, "PERCORE": service.url("")}
    done = subprocess.run([*command, str(file)], env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_in_curl(service: Service, tmp_path: Path) -> None:
    assert ANSWER.search(run(service, "sh", ["sh"], tmp_path / "example.sh"))


def test_the_example_in_python(service: Service, tmp_path: Path) -> None:
    assert ANSWER.search(run(service, "python", [sys.executable], tmp_path / "example.py"))


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_example_in_javascript(service: Service, tmp_path: Path) -> None:
    assert ANSWER.search(run(service, "js", ["node"], tmp_path / "example.mjs"))


def test_each_example_left_one_call_that_ran_once(service: Service) -> None:
    calls = service.get("/v1/calls").json()["calls"]
    assert len(calls) >= 2
    assert {(each["state"], each["runs"], each["status"]) for each in calls} == {("succeeded", 1, 200)}
