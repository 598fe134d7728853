"""Fixtures that several files of unit tests share."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Set TensorFlow to one thread before its first computation; later this is not possible."""
    from percore.handlers import tensorflow  # noqa: PLC0415 - it takes seconds, and most tests do without

    tensorflow.configure(1)


@pytest.fixture(scope="session")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that Keras 2 wrote, in a process of its own: see ``tests.legacy_models``."""
    folder = tmp_path_factory.mktemp("legacy")
    command = [sys.executable, "-W", "ignore", "-m", "tests.legacy_models", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder
