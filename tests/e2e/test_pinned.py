"""Workers with a core of their own.

Needs nodes whose kubelet has the static CPU manager, so it runs only with PERCORE_E2E_PINNED=1.
"""

from __future__ import annotations

import json
import os
import statistics

import pytest
import requests

from tests.e2e.conftest import Install
from tests.e2e.harness import SECONDS, Call, Release, kubectl

pytestmark = pytest.mark.skipif(os.environ.get("PERCORE_E2E_PINNED") != "1", reason="PERCORE_E2E_PINNED is not 1")
BURN = "/v1/models/burn:predict"
STEPS = {"inputs": [30000]}


def affinity(release: Release, pod: str, container: str) -> set[int]:
    script = "import json, os; print(json.dumps(sorted(os.sched_getaffinity(1))))"
    return set(json.loads(kubectl("-n", release.namespace, "exec", pod, "-c", container, "--", "python", "-c", script)))


def test_the_worker_has_one_core_to_itself_and_a_call_takes_as_long_among_others_as_alone(install: Install) -> None:
    """With TensorFlow, on the model `burn`."""
    release = install("pinned", handler="", image={"repository": "localhost/percore/demo"}, memory="1Gi")
    [pod] = release.wait(1)
    [gateway_pod] = release.ready("gateway")
    own = affinity(release, pod, "inference")
    assert len(own) == 1
    for name, container in ((pod, "status-server"), (gateway_pod, "gateway")):
        assert own.isdisjoint(affinity(release, name, container)), container
    with release.forwarded() as gateway:
        assert requests.post(gateway + BURN, json=STEPS, timeout=SECONDS).status_code == 200
        alone = [Call(gateway + BURN, STEPS, seconds=100).start().done() for _ in range(3)]
        among = [Call(gateway + BURN, STEPS, seconds=100).start() for _ in range(6)]
        assert [call.done().status for call in (*alone, *among)] == [200] * 9
    single = statistics.median(call.timing("run") for call in alone)
    runs = sorted(call.timing("run") for call in among)
    print(f"burn alone {single:.3f} s, slowest of six at once {runs[-1]:.3f} s: {runs[-1] / single:.3f} x")
    # If they shared a core, each would take six times as long. A smaller difference is the noise of the machine.
    assert statistics.median(runs) < 2 * single
