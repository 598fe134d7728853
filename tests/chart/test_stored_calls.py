"""Stored calls of a release: their volume or database, the settings and secrets of the gateway, and its connections."""

import json
from typing import Any

import pytest
import yaml
from percore.gateway import gateway_settings

from tests.chart.harness import CLAIMED, DATABASE, VOLUME, WEBHOOKS, Object, environment, notes, one, pod_specs, refusal, render

CALLS_DIR = "/var/lib/percore/calls"


def _gateway(*values: str) -> Object:
    spec: Object = one(render(*values), "Deployment", "-gateway")["spec"]["template"]["spec"]
    return spec


def _kinds(objects: list[Object]) -> set[str]:
    return {each["kind"] for each in objects}


def _from_secrets(spec: Object) -> dict[str, Any]:
    env = spec["containers"][0]["env"]
    return {each["name"]: each["valueFrom"]["secretKeyRef"] for each in env if "secretKeyRef" in each.get("valueFrom", {})}


def _volume(spec: Object) -> str | None:
    """Return the claim of the volume for stored calls."""
    mounts = {each["mountPath"]: each["name"] for each in spec["containers"][0]["volumeMounts"] if not each.get("readOnly")}
    volumes = {each["name"]: each.get("persistentVolumeClaim") for each in spec["volumes"]}
    claim = volumes[mounts[CALLS_DIR]] if CALLS_DIR in mounts else None
    return claim["claimName"] if claim else None


def test_by_default_nothing_is_stored() -> None:
    objects = render()
    assert "PersistentVolumeClaim" not in _kinds(objects)
    spec = _gateway()
    assert not [each for each in spec["containers"][0]["env"] if "CALLS" in each["name"] or "WEBHOOK" in each["name"]]
    assert _volume(spec) is None


def test_the_gateway_stores_calls_on_the_claim_that_the_chart_makes_and_helm_keeps() -> None:
    claim = one(render(*VOLUME), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    spec = _gateway(*VOLUME)
    assert _volume(spec) == claim["metadata"]["name"] == "first-percore-gateway-calls"
    settings = gateway_settings.load(environment(spec["containers"][0])).gateway
    assert str(settings.calls_dir) == CALLS_DIR
    assert settings.calls_database == ""
    assert spec["securityContext"]["fsGroup"] == 65532, "the user of the gateway could not write to the volume"


def test_an_existing_claim_is_used_and_none_is_created() -> None:
    assert "PersistentVolumeClaim" not in _kinds(render(*CLAIMED))
    assert _volume(_gateway(*CLAIMED)) == "mine"


@pytest.mark.parametrize(
    ("values", "storage"),
    [((), "13824Mi"), (("calls.bytes=104857600",), "1149Mi"), (("calls.persistence.size=7Gi",), "7Gi")],
)
def test_a_claim_has_room_for_the_bytes_that_the_gateway_may_store(values: tuple[str, ...], storage: str) -> None:
    spec = one(render(*VOLUME, *values), "PersistentVolumeClaim")["spec"]
    assert spec == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}}


def test_the_storage_class_and_the_access_modes_are_values() -> None:
    values = ("calls.persistence.storageClass=fast", "calls.persistence.accessModes={ReadWriteOncePod}")
    spec = one(render(*VOLUME, *values), "PersistentVolumeClaim")["spec"]
    assert (spec["storageClassName"], spec["accessModes"]) == ("fast", ["ReadWriteOncePod"])


def test_with_a_volume_the_old_gateway_ends_before_the_new_one_is_ready() -> None:
    """The volume can be mounted on another node only when the old pod has ended.

    So the new pod could never be ready before that.
    """
    deployment = one(render(*VOLUME), "Deployment", "-gateway")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    pod = deployment["template"]
    [preferred] = pod["spec"]["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wanted = preferred["podAffinityTerm"]["labelSelector"]["matchLabels"]
    assert wanted.items() <= pod["metadata"]["labels"].items(), "it should run on the node of the old one"
    own = _gateway(*VOLUME, "gateway.affinity.nodeAffinity.a=b")
    assert own["affinity"] == {"nodeAffinity": {"a": "b"}}


def test_with_a_database_there_may_be_several_gateways_and_there_is_no_volume() -> None:
    objects = render(*DATABASE, "gateway.replicas=3", "calls.database.key=uri")
    deployment = one(objects, "Deployment", "-gateway")["spec"]
    assert "PersistentVolumeClaim" not in _kinds(objects)
    assert (deployment["replicas"], deployment["strategy"]["rollingUpdate"]["maxUnavailable"]) == (3, 0)
    spec = deployment["template"]["spec"]
    assert _volume(spec) is None
    assert "affinity" not in spec
    assert _from_secrets(spec) == {"PERCORE_GATEWAY_CALLS_DATABASE": {"name": "database", "key": "uri"}}
    assert "PERCORE_GATEWAY_CALLS_DIR" not in environment(spec["containers"][0])


def test_the_values_of_stored_calls_arrive_as_settings_and_secrets_only_as_references() -> None:
    values = (
        "calls.retentionSeconds=3600",
        "calls.limit=5",
        "calls.bytes=1099511627776",
        "calls.maxRuns=3",
        "calls.webhooks.timeoutSeconds=7",
        "gateway.callerHeader=X-Tenant",
    )
    spec = _gateway(*VOLUME, *WEBHOOKS, *values)
    assert _from_secrets(spec) == {"PERCORE_GATEWAY_WEBHOOK_SECRETS": {"name": "signing", "key": "secrets"}}
    given = {**environment(spec["containers"][0]), "PERCORE_GATEWAY_WEBHOOK_SECRETS": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
    read = gateway_settings.load(given).gateway
    assert (read.calls_retention, read.calls_limit, read.calls_bytes, read.calls_max_runs) == (3600, 5, 1099511627776, 3)
    assert (len(read.webhook_hosts), read.webhook_timeout, read.caller_header) == (2, 7, "X-Tenant")


def test_no_pod_but_the_gateway_gets_the_volume_or_the_secrets() -> None:
    for values in ((*VOLUME, *WEBHOOKS), DATABASE):
        for name, spec in pod_specs(render(*values)):
            text = json.dumps(spec)
            found = [word for word in ("persistentVolumeClaim", "secretKeyRef") if word in text]
            assert bool(found) is name.endswith("-gateway"), name


def test_the_gateway_has_memory_for_the_calls_that_may_be_unfinished() -> None:
    def memory(*values: str) -> str:
        return str(_gateway(*values)["containers"][0]["resources"]["limits"]["memory"])

    assert memory() == "408Mi"
    assert memory(*VOLUME) == "551Mi", "64 MiB and 10,000 x 8 KiB more, rounded up"
    assert memory(*VOLUME, "calls.limit=100000") == "1254Mi"


def _egress(*values: str) -> list[Object]:
    """Return the peers that the gateway may connect to, besides its pods and the API server."""
    found: list[Object] = one(render(*values), "NetworkPolicy", "-gateway")["spec"]["egress"][2:]
    return found


DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def test_the_gateway_may_connect_only_to_the_peers_that_stored_calls_need() -> None:
    assert _egress() == _egress(*VOLUME) == []
    assert _egress(*DATABASE) == [{"ports": [{"port": 5432}]}, DNS]
    assert _egress(*VOLUME, *WEBHOOKS) == [{"ports": [{"port": 443}]}, DNS]
    named = (
        "networkPolicy.databases[0].ipBlock.cidr=10.0.0.5/32",
        "networkPolicy.databasePorts={6432}",
        "networkPolicy.webhookReceivers[0].ipBlock.cidr=10.1.0.0/16",
        "networkPolicy.webhookPorts={443,8443}",
    )
    assert _egress(*DATABASE, *WEBHOOKS, *named) == [
        {"to": [{"ipBlock": {"cidr": "10.0.0.5/32"}}], "ports": [{"port": 6432}]},
        {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443}, {"port": 8443}]},
        DNS,
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((*VOLUME, "gateway.replicas=2"), "gateway.replicas=2: must be 1, because calls.enabled=true stores calls on a volume"),
        (
            (*DATABASE, "calls.persistence.existingClaim=mine"),
            "calls.persistence.existingClaim=mine calls.database.existingSecret=database: set one of them",
        ),
        ((*DATABASE, "calls.persistence.size=5Gi"), "calls.persistence.size=5Gi calls.database.existingSecret=database"),
        ((*VOLUME, "calls.webhooks.hosts={a}"), "calls.webhooks.hosts: needs calls.webhooks.existingSecret"),
        ((*VOLUME, "calls.bytes=33554431"), "maxBodyBytes=33554432: must be at most calls.bytes, 33554431"),
        (("calls.limit=0",), "- calls.limit: "),
        (("calls.maxRuns=11",), "- calls.maxRuns: "),
        (("calls.webhooks.hosts={a b}",), "- calls.webhooks.hosts.0: "),
        (("calls.persistence.size=big",), "- calls.persistence.size: "),
        (("calls.persistence.accessModes={ReadOnlyMany}",), "- calls.persistence.accessModes.0: "),
        (("gateway.env[0].name=PERCORE_GATEWAY_CALLS_DIR",), "- gateway.env.0.name: "),
        (("gateway.env[0].name=PERCORE_GATEWAY_WEBHOOK_SECRETS",), "- gateway.env.0.name: "),
    ],
)
def test_values_that_cannot_work_are_refused_with_a_sentence(values: tuple[str, ...], words: str) -> None:
    assert words in refusal(*values)


def test_the_notes_name_the_place_of_calls_and_the_volume_that_uninstall_keeps() -> None:
    assert "respond-async" not in notes()
    said = notes(*VOLUME)
    assert "which helm uninstall keeps" in said
    assert "delete persistentvolumeclaim first-percore-gateway-calls" in said
    assert "delete persistentvolumeclaim" not in notes(*CLAIMED)
    assert "PostgreSQL database of Secret database" in notes(*DATABASE)


def test_the_notes_say_what_a_claim_without_a_storage_class_needs() -> None:
    words = "needs a default StorageClass"
    assert words in notes(*VOLUME)
    for values in ((*VOLUME, "calls.persistence.storageClass=fast"), CLAIMED, DATABASE):
        assert words not in notes(*values)


def test_the_threshold_of_the_alert_on_old_calls_is_a_value() -> None:
    text = yaml.safe_dump(one(render("monitoring.rules.storedCallQueueSeconds=7200"), "PrometheusRule", "-rules"), width=10**6)
    assert 'state="queued"}) > 7200' in text
