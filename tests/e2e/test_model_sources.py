"""Models from a store, an image and a volume: each answers correctly and shows its digest.

If a fetch fails, the pod shows one sentence.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Self

import pytest
import requests
import trustme
import yaml

from tests.e2e import prometheus
from tests.e2e.conftest import Install, restricted
from tests.e2e.harness import SECONDS, Release, eventually, images, kubectl, metric
from tests.e2e.volumes import volume
from tests.stores import AZURE_ACCOUNT, AZURE_KEY

KEY, SECRET = "the-key-of-the-test", "the-secret-of-the-test"
SEVEN = [0, 0, 7, 8, 13, 16, 15, 1, 0, 0, 7, 7, 4, 11, 12, 0, 0, 0, 0, 0, 8, 13, 1, 0, 0, 4, 8, 8, 15, 15, 6, 0]
SEVEN += [0, 2, 11, 15, 15, 4, 0, 0, 0, 0, 0, 16, 5, 0, 0, 0, 0, 0, 9, 15, 1, 0, 0, 0, 0, 0, 13, 5, 0, 0, 0, 0]
DEMO_MODEL_VALUES = {"handler": "", "memory": "1Gi", "exampleCall": {"path": ""}}
"""Additional values for a release with the demo model."""
STORE = {"endpoint": "http://store:8333", "existingSecret": "store", "maxBytes": 100_000_000}
SITE = {"caConfigMap": {"name": "store"}, "maxBytes": 100_000_000}
STORES = os.environ.get("PERCORE_E2E_STORES", "s3 site").split()
PORTS = {"s3": 8333, "site": 8443, "azure": 10000, "google": 4443}
NOT_IN_THE_IMAGE = "the store's image has no program for it: tools/install-test-programs brings it"


def digest_in_store(namespace: str, command: str) -> str:
    """Return the digest of the store's files, computed by the tools of its image."""
    return "sha256:" + kubectl("-n", namespace, "exec", "deployment/store", "-c", "s3", "--", "bash", "-c", command).split()[0]


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A namespace with a store: the Service, its credentials and its CA are all called `store`."""
    with restricted() as namespace:
        authority = trustme.CA()
        certificate = authority.issue_cert("store")
        image = images("store")["image"]
        security = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        commands = {
            "s3": ["rclone", "serve", "s3", "--addr", ":8333", "--auth-key", f"{KEY},{SECRET}", "/buckets"],
            "site": ["python", "/site.py", "/site", "/certificate/tls.crt", "/certificate/tls.key", "8443"],
            "azure": [
                *("node", "/programs/node_modules/azurite/dist/src/blob/main.js", "--blobHost", "0.0.0.0"),
                *("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--disableProductStyleUrl"),
            ],
            "google": [
                *("/programs/fake-gcs-server", "-scheme", "http", "-port", "4443", "-public-host", "store:4443"),
                *("-backend", "memory", "-data", "/buckets"),
            ],
        }
        containers = [
            {
                "name": name,
                "image": f"{image['repository']}:{image['tag']}",
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "workingDir": "/tmp",
                "env": [{"name": "HOME", "value": "/tmp"}],
                "securityContext": security,
                "volumeMounts": [{"name": "certificate", "mountPath": "/certificate"}],
            }
            for name, command in commands.items()
            if name in STORES
        ]
        labels = {"app": "store"}
        objects: list[dict[str, Any]] = [
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "store"},
                "spec": {
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "containers": containers,
                            "volumes": [{"name": "certificate", "secret": {"secretName": "certificate"}}],
                        },
                    },
                },
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "store"},
                "spec": {
                    "selector": labels,
                    "ports": [{"name": name, "port": port} for name, port in PORTS.items()],
                },
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "store"},
                "stringData": {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "wrong"},
                "stringData": {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "another", "AWS_REGION": "us-east-1"},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "azure"},
                "stringData": {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY},
            },
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "certificate"},
                "stringData": {
                    "tls.crt": b"".join(each.bytes() for each in certificate.cert_chain_pems).decode(),
                    "tls.key": certificate.private_key_pem.bytes().decode(),
                },
            },
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "store"},
                "data": {"ca.crt": authority.cert_pem.bytes().decode()},
            },
        ]
        kubectl("-n", namespace, "apply", "-f", "-", given=yaml.safe_dump_all(objects))
        kubectl("-n", namespace, "rollout", "status", "deployment/store", f"--timeout={SECONDS:g}s")
        yield namespace


@pytest.fixture
def namespace(store: str) -> str:
    """The namespace that `install` uses."""
    return store


def sees_a_seven(release: Release) -> None:
    with release.forwarded() as gateway:
        answer = requests.post(f"{gateway}/v1/models/digits:predict", json={"instances": [SEVEN]}, timeout=SECONDS)
        assert answer.json()["predictions"][0]["digit"] == 7


def shows_digest(release: Release, digest: str) -> None:
    """Check that version and digest are in both protocols, in the log and in the metric. Empty: the digest is not known."""
    with release.forwarded() as gateway:
        [version] = requests.get(f"{gateway}/v1/models/digits", timeout=SECONDS).json()["model_version_status"]
        assert (version["version"], version.get("digest", "")) == ("1", digest)
        model = requests.get(f"{gateway}/v2/models/digits", timeout=SECONDS).json()
        assert (model["versions"], model.get("parameters", {}).get("digest", "")) == (["1"], digest)
    [pod] = release.ready()
    with release.forwarded(f"pod/{pod}", 9090) as status:
        assert metric(status, "percore_model_info", model="digits", version="1", digest=digest) == 1
    logged = [line["message"] for line in release.lines(pod)]
    assert f"model 'digits' version 1 is loaded, digest {digest or 'not known'}" in logged


def fetch_message(release: Release) -> str:
    """Return the error message of the container that fetches; empty if it has not failed."""
    for pod in release.pods("inference"):
        for status in pod["status"].get("initContainerStatuses", []):
            ended = status["state"].get("terminated") or status["lastState"].get("terminated")
            if status["name"] == "fetch-model" and ended and ended["exitCode"]:
                return str(ended.get("message", "without a word"))
    return ""


FOLDER = r"cd /buckets/bucket/models && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum"


def test_models_of_an_s3_store_with_a_digest(install: Install, store: str) -> None:
    digest = digest_in_store(store, FOLDER)
    release = install("s3", **DEMO_MODEL_VALUES, model={"uri": "s3://bucket/models", "digest": digest, **STORE})
    [pod] = release.wait(1)
    sees_a_seven(release)
    shows_digest(release, digest)
    document = json.loads(kubectl("-n", store, "get", "pod", pod, "-o", "json"))
    assert document["status"]["qosClass"] == "Guaranteed"
    [said] = [line["message"] for line in release.lines(pod, "fetch-model") if "holds the models of" in line["message"]]
    assert said.endswith(digest)
    logs = kubectl("-n", store, "logs", pod, "--all-containers")
    assert KEY not in logs
    assert SECRET not in logs


@pytest.mark.skipif("azure" not in STORES, reason=NOT_IN_THE_IMAGE)
def test_models_of_azure(install: Install, store: str) -> None:
    endpoint = f"http://localhost:10000/{AZURE_ACCOUNT}"
    remote = f':azureblob,account={AZURE_ACCOUNT},key="{AZURE_KEY}",endpoint="{endpoint}":'
    kubectl("-n", store, "exec", "deployment/store", "-c", "s3", "--", "rclone", "copy", "--config", "", "/buckets", remote)
    digest = digest_in_store(store, FOLDER)
    model = {"uri": "az://bucket/models", "endpoint": endpoint.replace("localhost", "store"), "existingSecret": "azure"}
    release = install("azure", **DEMO_MODEL_VALUES, model={**model, "digest": digest, "maxBytes": 100_000_000})
    [pod] = release.wait(1)
    sees_a_seven(release)
    shows_digest(release, digest)
    assert AZURE_KEY not in kubectl("-n", store, "logs", pod, "--all-containers")


@pytest.mark.skipif("google" not in STORES, reason=NOT_IN_THE_IMAGE)
def test_models_of_google_cloud_storage(install: Install, store: str) -> None:
    digest = digest_in_store(store, FOLDER)
    model = {"uri": "gs://bucket/models", "endpoint": "http://store:4443", "anonymous": True}
    release = install("google", **DEMO_MODEL_VALUES, model={**model, "digest": digest, "maxBytes": 100_000_000})
    release.wait(1)
    sees_a_seven(release)
    shows_digest(release, digest)


def test_an_archive_of_an_https_server_whose_ca_is_private(install: Install, store: str) -> None:
    release = install("site", **DEMO_MODEL_VALUES, model={"uri": "https://store:8443/digits.tar.gz", **SITE})
    release.wait(1)
    sees_a_seven(release)
    shows_digest(release, digest_in_store(store, "sha256sum /site/digits.tar.gz"))


def test_an_image_that_holds_nothing_but_models(install: Install) -> None:
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]
    if (int(version["major"]), int(version["minor"].rstrip("+"))) < (1, 35):
        pytest.skip("this version of Kubernetes mounts no images")
    release = install(
        "oci", **DEMO_MODEL_VALUES, model={"image": f"localhost/percore/models:{os.environ['PERCORE_E2E_MODELS_TAG']}"}
    )
    release.wait(1)
    sees_a_seven(release)
    shows_digest(release, "")


def test_a_volume_with_models(install: Install, store: str) -> None:
    image = images("demo")["image"]
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    fill = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "fill"},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": security,
            "containers": [
                {
                    "name": "fill",
                    "image": f"{image['repository']}:{image['tag']}",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", "mkdir /volume/of && cp -r /models /volume/of/this"],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
                }
            ],
            "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": "models"}}],
        },
    }
    with volume(store, "models"):
        kubectl("-n", store, "apply", "-f", "-", given=yaml.safe_dump_all([claim, fill]))
        kubectl("-n", store, "wait", "pod/fill", "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={SECONDS:g}s")
        release = install(
            "volume", **DEMO_MODEL_VALUES, model={"persistentVolumeClaim": {"claimName": "models", "subPath": "of/this"}}
        )
        release.wait(1)
        sees_a_seven(release)
        shows_digest(release, "")


SLOW = "was not fetched within PERCORE_LOAD_TIMEOUT=20 s: "
CUT = "the last error: the server closed the connection early"
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "wrong-digest": (
        {**STORE, "uri": "s3://bucket/models", "digest": "sha256:" + "0" * 64},
        "s3://bucket/models has the digest sha256:",
    ),
    "nothing": ({**STORE, "uri": "s3://bucket/nothing"}, "s3://bucket/nothing has no files"),
    "too-large": (
        {**STORE, "uri": "s3://bucket/models", "maxBytes": 1000},
        "which is more than PERCORE_FETCH_MAX_BYTES=1000 allows",
    ),
    "unknown-ca": (
        {"uri": "https://store:8443/digits.tar.gz"},
        "signed by a CA that is not known: name it by PERCORE_FETCH_CA_FILE",
    ),
    "wrong-key": ({**STORE, "uri": "s3://bucket/models", "existingSecret": "wrong"}, "the server answers 403"),
    "forbidden": ({**SITE, "uri": "https://store:8443/forbidden/digits.tar.gz"}, "the server answers 403"),
    "cut-1": ({**SITE, "uri": "https://store:8443/cut-1/digits.tar.gz"}, CUT),
    "cut-50": ({**SITE, "uri": "https://store:8443/cut-50/digits.tar.gz"}, CUT),
    "cut-99": ({**SITE, "uri": "https://store:8443/cut-99/digits.tar.gz"}, CUT),
    "slow": ({**SITE, "uri": "https://store:8443/slow/digits.tar.gz"}, SLOW),
    "parent": ({**SITE, "uri": "https://store:8443/parent.tar.gz"}, "must be a path below the folder, without `..`"),
    "link": ({**SITE, "uri": "https://store:8443/link.tar.gz"}, "is a link or special file"),
    "bomb": (
        {**SITE, "uri": "https://store:8443/bomb.tar.gz"},
        "unpacks to more than PERCORE_FETCH_MAX_BYTES=100000000 allows",
    ),
}


# Four at a time: the releases wait together, but each one requests a CPU of the cluster.
@pytest.mark.parametrize(
    "names", [list(FAILURES)[at : at + 4] for at in range(0, len(FAILURES), 4)], ids=lambda names: names[0]
)
def test_if_a_fetch_fails_the_pod_shows_one_sentence_and_serves_nothing(install: Install, names: list[str]) -> None:
    releases = {
        name: install(f"bad-{name}", **DEMO_MODEL_VALUES, timeouts={"load": 20}, model=FAILURES[name][0]) for name in names
    }
    for name, release in releases.items():
        said = eventually(partial(fetch_message, release))
        assert FAILURES[name][1] in said, name
        assert len(said.splitlines()) == 1
        assert not release.ready()


def test_if_the_disk_is_full_the_pod_shows_one_sentence(install: Install, store: str) -> None:
    release = install("full", **DEMO_MODEL_VALUES, model={"uri": "https://store:8443/digits.tar.gz", **SITE})
    small = {"name": "models", "emptyDir": {"medium": "Memory", "sizeLimit": "100Ki"}}
    patch = {"spec": {"template": {"spec": {"volumes": [small]}}}}
    kubectl("-n", store, "patch", f"deployment/{release.full_name}-inference", "--patch", json.dumps(patch))
    said = eventually(lambda: fetch_message(release))
    assert "more than the disk has room for" in said
    assert len(said.splitlines()) == 1


class Callers:
    """Three callers that call the demo model again and again."""

    def __init__(self, gateway: str) -> None:
        self.statuses: Counter[int] = Counter()
        self._url = f"{gateway}/v1/models/digits:predict"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(3)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(SECONDS)

    def wait_for_more_answers(self) -> None:
        """Wait until further calls have been answered."""
        before = self.statuses.total()
        eventually(lambda: self.statuses.total() > before + 10)

    def _call(self) -> None:
        while not self._ended.wait(0.05):
            try:
                self.statuses[requests.post(self._url, json={"instances": [SEVEN]}, timeout=SECONDS).status_code] += 1
            except requests.RequestException:
                self.statuses[0] += 1


def test_a_new_revision_loses_no_call_and_an_alert_fires_for_a_broken_revision(install: Install, store: str) -> None:
    """Takes minutes, because Prometheus must first load the rules and find the Deployment."""
    model = {"uri": "s3://bucket/models", **STORE}
    release = install("revisions", **DEMO_MODEL_VALUES, model=model, monitoring={"enabled": True})
    deployment = f"deployment/{release.full_name}-inference"
    first = release.wait(1)
    with release.forwarded() as gateway, Callers(gateway) as callers:
        callers.wait_for_more_answers()
        release.upgrade({"model": {"revision": "2"}})
        second = eventually(lambda: [pod for pod in release.wait(1) if pod not in first])
        callers.wait_for_more_answers()

        release.upgrade({"model": {"revision": "3", "uri": "s3://bucket/nothing"}})
        # The chart's own deadline is minutes long. This changes no pod.
        kubectl("-n", store, "patch", deployment, "--patch", '{"spec": {"progressDeadlineSeconds": 5}}')
        said = eventually(lambda: fetch_message(release))
        assert said == "s3://bucket/nothing has no files\n"
        alert = f'ALERTS{{alertname="PercoreRevisionNotReady",namespace="{store}",alertstate="firing"}}'
        eventually(lambda: prometheus.query(alert), seconds=300, every=2)
        assert release.ready() == second
        callers.wait_for_more_answers()

        kubectl("-n", store, "rollout", "undo", deployment)
        eventually(lambda: len(release.pods("inference")) == 1)
        assert release.ready() == second
        callers.wait_for_more_answers()
    assert set(callers.statuses) == {200}
    eventually(lambda: not prometheus.query(alert), seconds=120, every=2)
