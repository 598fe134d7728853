"""From a new cluster to an answer, by the notes of the release."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import requests

from tests.e2e.conftest import Install
from tests.e2e.harness import (
    CALL,
    HELM,
    SECONDS,
    WITHOUT_AUTOSCALING,
    Release,
    eventually,
    images,
    kubectl,
    merged,
    metric,
    run,
    sleeping,
)


def test_the_first_curl_of_the_notes_comes_before_the_first_pod_is_ready_and_is_answered(namespace: str) -> None:
    """With the demo model, on TensorFlow.

    There is no pod until the call is queued, so the call always comes before the first pod.
    """
    release = Release("first", namespace, merged({**WITHOUT_AUTOSCALING, "replicas": 0}, images("demo")))
    try:
        notes = release.install()
        rollout = re.search(r"^ +(kubectl .* rollout status .*)$", notes, re.MULTILINE)
        forward = re.search(r"^ +(kubectl .* port-forward .*)8080:8080$", notes, re.MULTILINE)
        curl = re.search(r"^ +(curl .*)$", notes, re.MULTILINE)
        assert rollout
        assert forward
        assert curl
        run(*shlex.split(rollout[1]))
        with subprocess.Popen([*shlex.split(forward[1]), ":8080"], stdout=subprocess.PIPE, text=True) as forwarding:
            try:
                assert forwarding.stdout is not None
                port = re.search(r"127.0.0.1:(\d+)", forwarding.stdout.readline())
                assert port
                line = curl[1].replace("127.0.0.1:8080", f"127.0.0.1:{port[1]}")
                with subprocess.Popen([*shlex.split(line), "--silent"], stdout=subprocess.PIPE, text=True) as calling:
                    eventually(lambda: _queued(release) == 1)
                    release.upgrade({"replicas": 1})
                    head, body = calling.communicate(timeout=SECONDS)[0].split("\n\n", 1)
            finally:
                forwarding.kill()
        assert head.startswith("HTTP/1.1 200")
        assert json.loads(body)["predictions"][0]["digit"] == 7
        said = run(HELM, "test", "first", "-n", namespace)
        assert re.search(r"Phase: +Succeeded", said)
        pod = release.pods("inference")[0]
        assert pod["status"]["qosClass"] == "Guaranteed"
    finally:
        release.uninstall()


def _queued(release: Release) -> float:
    [gateway] = release.ready("gateway")
    with release.forwarded(f"pod/{gateway}", 9090) as status:
        return metric(status, "percore_in_flight_requests", state="queued")


def test_a_handler_of_your_own_needs_three_lines(install: Install) -> None:
    release = install("own", handler="", image={"repository": "localhost/percore/own"}, exampleCall={"path": ""})
    with release.forwarded() as gateway:
        answer = requests.post(gateway + CALL, json={"inputs": {"stars": [[1.0, 2.0]]}}, timeout=SECONDS)
    assert answer.json() == {"outputs": [8.0]}


def test_two_releases_in_one_namespace_do_not_affect_each_other(install: Install) -> None:
    first, second = install("one"), install("two.point-5")
    second_name = kubectl("-n", second.namespace, "get", "service", "-l", second.labels, "-o", "name").split()[0]
    with first.forwarded() as one, second.forwarded(second_name) as two:
        for gateway in (one, two):
            assert requests.post(gateway + CALL, json=sleeping(0), timeout=SECONDS).status_code == 200
    for release in (first, second):
        [pod] = release.pods("inference")
        assert len(release.calls([pod["metadata"]["name"]])) == 1


def test_service_accounts_may_do_no_more_than_they_need(install: Install) -> None:
    release = install("rights")

    def may(account: str, namespace: str) -> set[tuple[str, str]]:
        user = f"system:serviceaccount:{release.namespace}:{account}"
        lines = kubectl("-n", namespace, "--as", user, "auth", "can-i", "--list", "--no-headers").splitlines()
        rights = [(line.split()[0], line[line.rindex("[") :]) for line in lines if not line.startswith(" ")]
        return {
            each for each in rights if not each[0].startswith("self") and each[0] != "clustertrustbundles.certificates.k8s.io"
        }

    everyone = may("default", release.namespace)
    assert may("rights-percore-inference", release.namespace) - everyone == set()
    needed = {("endpointslices.discovery.k8s.io", "[list watch]"), ("pods", "[list patch]")}
    assert may("rights-percore-gateway", release.namespace) - everyone == needed
    assert may("rights-percore-gateway", "kube-system") - may("default", "kube-system") == set()


def test_the_gateway_can_change_nothing_of_a_pod_but_its_deletion_cost(install: Install) -> None:
    """RBAC cannot restrict this; the ValidatingAdmissionPolicy does."""
    release = install("marks")
    [pod] = release.wait(1)
    [gateway] = release.ready("gateway")
    cost = "controller.kubernetes.io/pod-deletion-cost"
    allowed = {"metadata": {"annotations": {cost: "7"}}}
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            port = re.search(r"127\.0\.0\.1:(\d+)", proxy.stdout.readline())
            assert port
            headers = {
                "Impersonate-User": f"system:serviceaccount:{release.namespace}:marks-percore-gateway",
                "Content-Type": "application/merge-patch+json",
            }

            def status(name: str, patch: object) -> int:
                url = f"http://127.0.0.1:{port[1]}/api/v1/namespaces/{release.namespace}/pods/{name}"
                return requests.patch(url, data=json.dumps(patch), headers=headers, timeout=30).status_code

            # The API server takes a moment to enforce a new policy.
            eventually(lambda: status(pod, {"metadata": {"labels": {"a": "b"}}}) == 422, seconds=30)
            assert status(pod, allowed) == 200
            assert status(pod, {"metadata": {"annotations": {"another": "1"}}}) == 422
            assert status(pod, {"spec": {"activeDeadlineSeconds": 1}}) == 422
            assert status(pod, {"spec": {"containers": [{"name": "inference", "image": "another"}]}}) == 422
            assert status(gateway, allowed) == 422
        finally:
            proxy.kill()
    [document] = release.pods("inference")
    # The gateway itself may have set it back meanwhile.
    assert document["metadata"].get("annotations", {}).get(cost, "0") in {"7", "0"}
