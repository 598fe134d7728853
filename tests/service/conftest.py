"""One service with every kind of model, for the tests that need no faults."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.service import MODELS, ROOT, Service


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the demo models, one of them in two versions, and with a TF1, a TF2 and a Keras model."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, "-m", "tests.models", str(folder)], cwd=ROOT, check=True, capture_output=True)
    for name in ("digits", "burn"):
        shutil.copytree(MODELS / name, folder / name)
    shutil.copytree(folder / "digits/1", folder / "digits/2")
    return folder


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Service]:
    """A service of that repository, on every core."""
    labels = "digits:stable=1,digits:canary=2"
    with Service(model_repository=repository, model_labels=labels, body_timeout=2, max_body_bytes=1_000_000) as service:
        yield service.ready(workers=2)
