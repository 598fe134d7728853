"""The sources of a release's models."""

from typing import Any

import pytest
from percore import settings

from tests.chart.harness import environment, one, refusal, render

CLAIM = ("model.persistentVolumeClaim.claimName=models", "model.persistentVolumeClaim.subPath=of/this")


@pytest.mark.parametrize(
    ("values", "source", "mount"),
    [
        (("model.image=a/b:1",), {"image": {"reference": "a/b:1", "pullPolicy": "IfNotPresent"}}, {}),
        (("model.image=a/b:1", "model.pullPolicy=Always"), {"image": {"reference": "a/b:1", "pullPolicy": "Always"}}, {}),
        (CLAIM, {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}, {"subPath": "of/this"}),
        (CLAIM[:1], {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}, {}),
    ],
)
def test_models_are_mounted_and_read_only(values: tuple[str, ...], source: object, mount: dict[str, str]) -> None:
    spec = one(render(*values), "Deployment", "inference")["spec"]["template"]["spec"]
    assert [each for each in spec["volumes"] if each["name"] == "models"] == [{"name": "models", **source}]  # type: ignore[dict-item]
    [worker] = spec["containers"]
    assert environment(worker)["PERCORE_MODEL_REPOSITORY"] == "/models"
    mounts = [each for each in worker["volumeMounts"] if each["name"] == "models"]
    assert mounts == [{"name": "models", "mountPath": "/models", "readOnly": True, **mount}]


def test_without_a_source_the_image_decides() -> None:
    [worker] = one(render(), "Deployment", "inference")["spec"]["template"]["spec"]["containers"]
    assert "PERCORE_MODEL_REPOSITORY" not in environment(worker)


def test_a_new_revision_replaces_the_pods() -> None:
    first, second = (
        one(render(*given), "Deployment", "inference")["spec"]["template"] for given in ((), ("model.revision=2026-11",))
    )
    assert second["metadata"]["annotations"].items() - first["metadata"]["annotations"].items() == {
        ("percore/model-revision", "2026-11")
    }
    assert first["spec"] == second["spec"]


# --- model.uri ---

URI = "model.uri=s3://bucket/models"
DIGEST = "sha256:" + "a" * 64


def pod(*values: str) -> dict[str, Any]:
    spec: dict[str, Any] = one(render(*values), "Deployment", "inference")["spec"]["template"]["spec"]
    return spec


def fetcher(*values: str) -> dict[str, Any]:
    [found] = [each for each in pod(*values)["initContainers"] if each["name"] == "fetch-model"]
    return dict(found)


def test_a_uri_is_fetched_to_a_volume_that_the_worker_can_only_read() -> None:
    spec = pod(URI, "model.maxBytes=1000000")
    assert [each["name"] for each in spec["initContainers"]] == ["fetch-model", "status-server"]
    assert {"name": "models", "emptyDir": {"sizeLimit": "1250000"}} in spec["volumes"]
    assert fetcher(URI)["args"] == ["fetch", "s3://bucket/models", "/models/fetched"]
    assert {"name": "models", "mountPath": "/models"} in fetcher(URI)["volumeMounts"]
    [worker] = spec["containers"]
    assert environment(worker)["PERCORE_MODEL_REPOSITORY"] == "/models/fetched"
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in worker["volumeMounts"]


def test_the_values_of_a_uri_reach_the_container_that_fetches() -> None:
    given = (URI, "model.name=mine", f"model.digest={DIGEST}", "model.endpoint=http://minio:9000", "model.anonymous=true")
    more = ("model.existingSecret=keys", "model.caConfigMap.name=ca", "model.env[0].name=AWS_REGION", "model.env[0].value=here")
    found = fetcher(*given, *more, "timeouts.load=100", "model.maxBytes=20000000000")
    assert found["args"][-1] == "--name=mine"
    assert environment(found) == {
        "PERCORE_LOAD_TIMEOUT": "100",
        "PERCORE_FETCH_MAX_BYTES": "20000000000",
        "PERCORE_MODEL_DIGEST": DIGEST,
        "PERCORE_FETCH_ENDPOINT": "http://minio:9000",
        "PERCORE_FETCH_ANONYMOUS": "yes",
        "PERCORE_FETCH_CA_FILE": "/etc/percore/model-ca/ca.crt",
        "PERCORE_LOG_LEVEL": "info",
        "AWS_REGION": "here",
    }
    assert found["envFrom"] == [{"secretRef": {"name": "keys"}}]
    [worker] = pod(*given, *more)["containers"]
    assert "envFrom" not in worker
    assert environment(worker)["PERCORE_MODEL_DIGEST"] == DIGEST
    assert set(environment(found)) - {"AWS_REGION"} <= settings.keys()


def test_a_pod_that_fetches_stays_guaranteed_and_needs_no_more_cores() -> None:
    values = (URI, "cpu=2")
    found, [worker] = fetcher(*values), pod(*values)["containers"]
    for each in (found, worker):
        assert all(
            each["resources"]["requests"][name] == each["resources"]["limits"][name] == value
            for name, value in (("cpu", "2"), ("memory", "2Gi"))
        )
    assert found["securityContext"] == worker["securityContext"]
    assert found["resources"]["requests"]["ephemeral-storage"] == worker["resources"]["requests"]["ephemeral-storage"]


def test_a_rollout_has_time_to_fetch_and_then_to_load() -> None:
    seconds = [one(render(*given), "Deployment", "inference")["spec"]["progressDeadlineSeconds"] for given in ((), (URI,))]
    assert seconds == [900, 1500]


def test_alerts_and_helm_test_give_pods_the_same_time() -> None:
    for given, load in (((), 600), ((URI,), 1200)):
        objects = render(*given)
        groups = one(objects, "PrometheusRule", "-rules")["spec"]["groups"]
        times = {rule["for"] for group in groups for rule in group["rules"] if rule.get("alert") == "PercorePodsNotReady"}
        assert times == {f"{load + 300}s"}
        [caller] = one(objects, "Pod", "-test")["spec"]["containers"]
        assert environment(caller)["LOAD_SECONDS"] == f"{load + 60}"


@pytest.mark.parametrize(
    ("values", "port"),
    [
        ((URI,), 443),
        ((URI, "model.endpoint=http://minio:9000"), 9000),
        ((URI, "model.endpoint=http://minio"), 80),
        (("model.uri=https://host:8443/a.zip",), 8443),
        (("model.uri=https://host/a.zip", "model.endpoint=http://other:1"), 443),
    ],
)
def test_the_network_policy_lets_a_pod_reach_the_store_and_dns(values: tuple[str, ...], port: int) -> None:
    given = (*values, "networkPolicy.modelStores[0].ipBlock.cidr=10.0.0.0/8", "networkPolicy.podEgress[0].ports[0].port=5432")
    store, names, credentials, more = one(render(*given), "NetworkPolicy", "-inference")["spec"]["egress"]
    assert store == {"ports": [{"port": port}], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    assert [each["port"] for each in names["ports"]] == [53, 53]
    assert all(each["ipBlock"]["cidr"].startswith("169.254.") for each in credentials["to"])
    assert more == {"ports": [{"port": 5432}]}


def test_the_network_policy_opens_no_cloud_metadata_for_a_secret_or_for_a_file_uri() -> None:
    [_, names] = one(render(URI, "model.existingSecret=s"), "NetworkPolicy", "-inference")["spec"]["egress"]
    assert names["ports"][0]["port"] == 53
    assert one(render("model.uri=file:///mnt/models"), "NetworkPolicy", "-inference")["spec"]["egress"] == []


def test_the_digest_of_an_image_is_known_to_the_worker() -> None:
    [worker] = pod(f"model.image=a/b@{DIGEST}")["containers"]
    assert environment(worker)["PERCORE_MODEL_DIGEST"] == DIGEST


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((URI, "model.image=a/b:1"), "model.image=a/b:1 model.uri=s3://bucket/models: set one of them"),
        ((URI, *CLAIM), "model.persistentVolumeClaim.claimName=models model.uri=s3://bucket/models: set one of them"),
        (("model.uri=ftp://host/a",), 'model.uri: begins with "ftp", must begin with s3://, gs://, az://, https:// or file://'),
        (("model.uri=models",), 'model.uri: begins with "", must begin with'),
        (("model.uri=https://host/a.zip?sig=secret",), "model.uri: must have no query"),
        (("model.uri=https://me:secret@host/a.zip",), "model.uri: must have no user and no password"),
        (("model.image=a/b:1", "model.uri=https://me:secret@host/a.zip"), "model.uri: must have no user and no password"),
        (("model.existingSecret=s",), "model.existingSecret: needs model.uri"),
        (("model.anonymous=true",), "model.anonymous: needs model.uri"),
        (("model.caConfigMap.name=ca",), "model.caConfigMap.name=ca: needs model.uri"),
        ((URI, "model.digest=md5:1"), "- model.digest: "),
        ((URI, "model.endpoint=minio:9000"), "- model.endpoint: "),
        ((URI, "model.name=a/b"), "- model.name: "),
        ((URI, "model.env[0].name=PERCORE_FETCH_MAX_BYTES"), "- model.env.0.name: "),
        ((URI, "model.env[0].name=PERCORE_FETCH_X"), "model.env: PERCORE_FETCH_X is no setting"),
    ],
)
def test_sources_that_make_no_sense_are_refused_with_a_sentence(values: tuple[str, ...], words: str) -> None:
    said = refusal(*values)
    assert words in said
    assert "secret" not in said
