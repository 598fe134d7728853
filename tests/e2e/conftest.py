"""A namespace that enforces Pod Security `restricted`, and releases in it, which are removed after the test."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.harness import SLEEP, SMALL, WITHOUT_AUTOSCALING, Release, eventually, kubectl, merged

Install = Callable[..., Release]
PROOF_FAILED = 10
"""Exit status if a test marked ``proof`` failed. pytest itself uses 0 to 5."""
_refuted: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take note of tests marked ``proof`` that failed; pytest-xdist runs them in other processes."""
    if report.failed and "proof" in report.keywords:
        _refuted.append(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Set the exit status, so that a failed proof is not tried again."""
    if _refuted:
        session.exitstatus = PROOF_FAILED


@pytest.fixture(scope="session")
def namespace() -> Iterator[str]:
    with restricted() as name:
        yield name


@pytest.fixture
def empty_namespace() -> Iterator[str]:
    """A namespace in which nothing else is installed."""
    with restricted() as name:
        yield name


@contextlib.contextmanager
def restricted() -> Iterator[str]:
    """Make a namespace that enforces Pod Security `restricted`."""
    name = f"percore-e2e-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def install(namespace: str, request: pytest.FixtureRequest) -> Iterator[Install]:
    """Install a release with the sleeping handler, which needs no TensorFlow and no core, on a fixed number of pods."""
    with releases(namespace, request.session) as installed:
        yield installed


@contextlib.contextmanager
def releases(namespace: str, session: pytest.Session) -> Iterator[Install]:
    """Yield a function that installs a release.

    At the end, releases are removed. If a test has failed, their state is printed before that.
    """
    made: list[Release] = []
    failed = session.testsfailed

    def installed(name: str = "trial", **values: Any) -> Release:
        release = Release(name, namespace, merged({**WITHOUT_AUTOSCALING, **SMALL, "handler": SLEEP}, values))
        made.append(release)
        release.install()
        eventually(lambda: release.ready("gateway"))
        return release

    try:
        yield installed
    finally:
        if session.testsfailed > failed:
            _print_state(namespace)
        for release in made:
            release.uninstall()


def _print_state(namespace: str) -> None:
    """Print the state that an operator would look at first."""
    for what in (
        ("get", "pods,hpa,endpointslices", "-o", "wide"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("logs", "-l", "app.kubernetes.io/component=gateway", "--all-containers", "--prefix", "--tail=60"),
    ):
        done = subprocess.run(["kubectl", "-n", namespace, *what], capture_output=True, text=True, timeout=60, check=False)
        print(done.stdout[-8000:], done.stderr[-2000:])
