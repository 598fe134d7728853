"""Outages of parts of a cluster."""

from __future__ import annotations

import os
import shlex
import subprocess
import time

import pytest

from tests.e2e.conftest import Install
from tests.e2e.crowd import Crowd
from tests.e2e.harness import SECONDS, Release, eventually, metric

PAUSE = os.environ.get("PERCORE_E2E_PAUSE_API_SERVER", "")
"""A command that makes the API server unreachable; its argument is a number of seconds."""


@pytest.mark.disruptive
@pytest.mark.skipif(not PAUSE, reason="PERCORE_E2E_PAUSE_API_SERVER names no command that can do it")
def test_calls_go_on_without_the_api_server_for_a_minute_and_pods_are_found_again(install: Install) -> None:
    """The callers are in the cluster: a forwarded port leads through the API server.

    They call the gateway's pod. When the API server is back, Kubernetes first counts nodes as lost, because they sent nothing
    for 50 s. So for a second its Services refuse all connections. The gateway goes on, because it also uses pods that are not
    ready.
    """
    release = install("severed", replicas=4)
    release.wait(4)
    [gateway] = release.pods("gateway")
    host = gateway["status"]["podIP"]
    short = Crowd(release, "severed-short", count=900, at_once=8, seconds=0.4, every=0.1, host=host).start()
    long = Crowd(release, "severed-long", count=2, at_once=2, seconds=75, same_seconds=True, host=host).start()
    time.sleep(5)
    with subprocess.Popen([*shlex.split(PAUSE), "60"]) as pause:
        time.sleep(10)
        asked = subprocess.run(["kubectl", "get", "--raw", "/readyz", "--request-timeout=5s"], capture_output=True, check=False)
        assert asked.returncode != 0, "the API server still answers"
        assert pause.wait(SECONDS) == 0
    eventually(lambda: subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False).returncode == 0)
    assert short.done()["outcomes"] == {"200": 900}
    assert long.done()["outcomes"] == {"200": 2}
    release.upgrade({"replicas": 5})
    release.wait(5)
    eventually(lambda: _known(release) == 5)


def _known(release: Release) -> int:
    """Return how many listed pods have neither a reservation nor a run."""
    [gateway] = release.ready("gateway")
    with release.forwarded(f"pod/{gateway}", 9090) as status:
        return int(metric(status, "percore_gateway_pods", state="unknown"))
