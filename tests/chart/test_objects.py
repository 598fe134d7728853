"""The rendered objects: facts that operators and calls depend on."""

import math

import kubernetes_validate
import pytest
from percore import __version__, settings
from percore.gateway import gateway_settings

from tests.chart.harness import (
    CHART,
    CLAIMED,
    DATABASE,
    NOT_OF_KUBERNETES,
    VOLUME,
    WEBHOOKS,
    WITHOUT_AUTOSCALING,
    Object,
    containers,
    environment,
    notes,
    one,
    pod_specs,
    render,
)

EVERYTHING = (
    "autoscaling.spareReplicas=1",
    "gateway.replicas=2",
    "handler=fortune:Fortune",
    "gateway.priorityHeader=X-Priority",
    "monitoring.labels.release=prometheus",
    "podAnnotations.a=b",
    "gateway.podAnnotations.a=b",
    "service.annotations.a=b",
    "imagePullSecrets[0].name=secret",
    "env[0].name=A",
    "env[0].value=b",
    "networkPolicy.callers[0].namespaceSelector.matchLabels.a=b",
    "networkPolicy.scrapers[0].namespaceSelector.matchLabels.a=b",
    "networkPolicy.podEgress[0].ports[0].port=443",
    "nodeSelector.a=b",
    "gateway.nodeSelector.a=b",
    "priorityClassName=high",
)
APP = ("app=myapp:create_app()", "gateway.healthPaths={/,/health}")
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "fixed": WITHOUT_AUTOSCALING,
    "everything": EVERYTHING,
    "app": APP,
    "stored": VOLUME,
    "stored, claim": CLAIMED,
    "stored, webhooks": (*VOLUME, *WEBHOOKS),
    "stored, database": DATABASE,
    "stored, database, webhooks": (*DATABASE, *WEBHOOKS),
    "less": ("gateway.deletionCosts.enabled=false", "networkPolicy.enabled=false"),
}


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(*request.param)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("version", ["1.29", "1.33", "1.35", "1.37"])
def test_every_object_is_one_that_this_version_of_kubernetes_knows(version: str, variant: str) -> None:
    """The chart promises 1.29 and later; 1.35 is the first version with a tolerance of the HPA."""
    for each in render(*VARIANTS[variant], more=("--kube-version", version)):
        if each["kind"] not in NOT_OF_KUBERNETES:
            kubernetes_validate.validate(each, version, strict=True)


def test_every_object_names_its_release_and_its_namespace(objects: list[Object]) -> None:
    for each in objects:
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "first", each["kind"]
        assert each["metadata"].get("namespace", "here") == "here"
        cluster_wide = each["kind"].startswith("ValidatingAdmissionPolicy")
        assert ("namespace" in each["metadata"]) is not cluster_wide
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_every_pod_keeps_to_pod_security_restricted_and_writes_nowhere_but_to_its_own_folders(objects: list[Object]) -> None:
    for _, spec in pod_specs(objects):
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == 65532
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert all(
            volume.keys() <= {"name", "emptyDir", "projected", "persistentVolumeClaim"} for volume in spec.get("volumes", [])
        )
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_no_pod_is_given_settings_by_service_links_or_a_token_that_it_does_not_need(objects: list[Object]) -> None:
    for _, spec in pod_specs(objects):
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        holders = [each["name"] for each in containers(spec) if "token" in _mounts(each)]
        assert holders in ([], ["gateway"])
    for account in (each for each in objects if each["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def _mounts(container: Object) -> set[str]:
    return {each["name"] for each in container.get("volumeMounts", [])}


@pytest.mark.parametrize("cpu", [1, 4])
def test_an_inference_pod_is_guaranteed_and_its_worker_has_whole_cpus(cpu: int) -> None:
    spec = _spec(render(f"cpu={cpu}"), "inference")
    for container in containers(spec):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert set(limits) == {"cpu", "memory"}
        assert {name: requests[name] for name in limits} == limits
    [worker] = spec["containers"]
    assert worker["resources"]["limits"]["cpu"] == str(cpu)
    assert environment(worker)["PERCORE_CORES_PER_CALL"] == str(cpu)


def test_the_status_server_outlives_the_worker() -> None:
    [sidecar] = _spec(render(), "inference")["initContainers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("status-server", "Always")


def test_the_gateway_is_one_container_that_serves_calls_and_metrics() -> None:
    gateway = _gateway()
    assert gateway["args"] == ["gateway"]
    assert {port["name"]: port["containerPort"] for port in gateway["ports"]} == {"calls": 8080, "metrics": 9090}
    assert "lifecycle" not in gateway, "SIGTERM is enough: the gateway itself delays the close of its port"


def test_the_gateway_is_restarted_only_when_its_process_says_that_it_hangs() -> None:
    """A restart loses the queue, so a slow probe must not cause one.

    The process fails /livez after 60 s in which the event loop did not run.
    """
    gateway = _gateway()
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    liveness = gateway["livenessProbe"]
    assert liveness["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60


def _gateway(*values: str) -> Object:
    spec = _spec(render(*values), "gateway")
    assert "initContainers" not in spec
    [container] = spec["containers"]
    assert container["name"] == "gateway"
    return dict(container)


@pytest.mark.parametrize("spool", [2147483648, 3, 1099511627776])
def test_the_spool_is_a_volume_on_disk_a_quarter_larger_than_the_bound_of_the_gateway(spool: int) -> None:
    values = (f"gateway.spool.bytes={spool}", "maxBodyBytes=1")
    spec = _spec(render(*values), "gateway")
    [container] = spec["containers"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    given = environment(container)
    assert given["PERCORE_GATEWAY_SPOOL_BYTES"] == str(spool)
    size = math.ceil(spool * 1.25)
    volume = volumes[mounts[given["PERCORE_GATEWAY_SPOOL_DIR"]]]
    assert volume["emptyDir"] == {"sizeLimit": str(size)}
    assert container["resources"]["requests"]["ephemeral-storage"] == str(size)


def test_large_numbers_of_values_arrive_as_whole_numbers() -> None:
    """Helm reads the numbers of values.yaml as floats, and would print them as 2.147483648e+09."""
    for values in ((), ("gateway.spool.memoryBytes=4294967296", "maxBodyBytes=2147483648")):
        for each in render(*values, "handler=a:B"):
            if each["kind"] in ("Deployment", "Pod"):
                spec = each["spec"]["template"]["spec"] if each["kind"] == "Deployment" else each["spec"]
                for container in containers(spec):
                    assert not [value for value in environment(container).values() if "e+" in value]
    given = environment(_gateway("gateway.spool.memoryBytes=4294967296", "maxBodyBytes=2147483648"))
    assert given["PERCORE_GATEWAY_SPOOL_MEMORY_BYTES"] == "4294967296"
    assert given["PERCORE_MAX_BODY_BYTES"] == "2147483648"
    assert environment(_gateway())["PERCORE_GATEWAY_SPOOL_BYTES"] == "2147483648"


def test_no_probe_can_end_a_running_call_and_a_load_has_its_whole_timeout() -> None:
    objects = render("timeouts.load=900")
    [worker] = _spec(objects, "inference")["containers"]
    assert "livenessProbe" not in worker
    assert worker["startupProbe"]["periodSeconds"] * worker["startupProbe"]["failureThreshold"] > 900
    assert worker["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 9090}


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("timeouts.run=604800",),
        ("timeouts.run=36000", "timeouts.queue=10", "timeouts.body=5", "gateway.shutdownDelaySeconds=90"),
    ],
)
def test_a_pod_that_is_deleted_has_time_to_finish(values: tuple[str, ...]) -> None:
    objects = render(*values)
    inference, gateway = _spec(objects, "inference"), _spec(objects, "gateway")
    limits = _limits(inference)
    call = limits.run_timeout + limits.body_timeout + limits.answer_timeout
    assert limits.shutdown_timeout >= min(call, settings.WEEK_SECONDS)
    assert inference["terminationGracePeriodSeconds"] > min(call, settings.WEEK_SECONDS) + 5
    delay = int(environment(gateway["containers"][0])["PERCORE_GATEWAY_SHUTDOWN_DELAY"])
    assert gateway["terminationGracePeriodSeconds"] > delay + limits.queue_timeout + call
    assert "preStop" in inference["containers"][0]["lifecycle"]


def test_containers_get_only_known_settings_and_gateways_and_workers_the_same_limits() -> None:
    objects = render(*EVERYTHING, "timeouts.run=7", "timeouts.queue=8", "queue.length=9", "maxBodyBytes=33554432")
    inference, gateway = _spec(objects, "inference"), _spec(objects, "gateway")
    for container in containers(inference):
        read = settings.load(environment(container))
        assert (read.limits.run_timeout, read.limits.queue_timeout, read.limits.queue_length) == (7, 8, 9)
        assert read.limits.max_body_bytes == 33554432
    for container in containers(gateway):
        read_gateway = gateway_settings.load(environment(container))
        assert read_gateway.limits == settings.load(environment(inference["containers"][0])).limits
        assert read_gateway.gateway.service == "first-percore-inference"
        assert read_gateway.gateway.namespace == "here"
        assert read_gateway.gateway.priority_header == "X-Priority"


@pytest.mark.parametrize("release", ["first", "a.b", "0"])
def test_the_gateway_lists_the_pods_that_the_service_of_inference_pods_selects(release: str) -> None:
    objects = render(release=release)
    [container] = containers(_spec(objects, "gateway"))
    selector = gateway_settings.load(environment(container)).gateway.pod_selector
    of_service = one(objects, "Service", "-inference")["spec"]["selector"]
    assert dict(entry.split("=") for entry in selector.split(",")) == of_service


def test_the_values_of_the_gateway_arrive_as_its_settings() -> None:
    given = {"connections": 5, "uploads": 6, "idleTimeoutSeconds": 7, "shutdownDelaySeconds": 8, "spool.memoryBytes": 9}
    found = environment(_gateway(*(f"gateway.{name}={value}" for name, value in given.items())))
    keys = ("CONNECTIONS", "UPLOADS", "IDLE_TIMEOUT", "SHUTDOWN_DELAY", "SPOOL_MEMORY_BYTES")
    assert [int(found[f"PERCORE_GATEWAY_{key}"]) for key in keys] == list(given.values())


def test_rolling_updates_take_no_pod_away_before_its_successor_is_ready() -> None:
    objects = render()
    for component in ("inference", "gateway"):
        strategy = one(objects, "Deployment", component)["spec"]["strategy"]
        assert strategy["type"] == "RollingUpdate"
        assert strategy["rollingUpdate"]["maxUnavailable"] == 0


def test_disruption_budgets_let_the_only_pod_be_drained() -> None:
    for each in render():
        if each["kind"] == "PodDisruptionBudget":
            allowed = str(each["spec"]["maxUnavailable"])
            assert math.ceil(float(allowed.rstrip("%")) / (100 if "%" in allowed else 1)) >= 1


def test_autoscaling_owns_the_number_of_pods_and_follows_the_calls_of_all_gateways_at_once() -> None:
    objects = render("autoscaling.maxReplicas=20")
    assert "replicas" not in one(objects, "Deployment", "inference")["spec"]
    spec = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 20)
    [metric] = spec["metrics"]
    service = one(objects, "Service", "first-percore-gateway")
    assert metric["object"] == {
        "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "first-percore-gateway"},
        "metric": {"name": "percore_in_flight_requests"},
        "target": {"type": "AverageValue", "averageValue": "1"},
    }
    assert service["spec"]["publishNotReadyAddresses"] is True
    up = spec["behavior"]["scaleUp"]
    assert up["stabilizationWindowSeconds"] == 0
    assert up["policies"] == [{"type": "Pods", "value": 20, "periodSeconds": 1}]
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


@pytest.mark.parametrize(("version", "known"), [("1.29.0", False), ("1.34.5", False), ("1.35.0", True), ("1.37.2", True)])
def test_the_hpa_has_tolerance_zero_if_the_cluster_has_that_field(version: str, known: bool) -> None:
    up = one(render(more=("--kube-version", version)), "HorizontalPodAutoscaler")["spec"]["behavior"]["scaleUp"]
    assert up.get("tolerance") == ("0" if known else None)


def test_a_cluster_that_has_no_native_sidecars_is_refused() -> None:
    with pytest.raises(AssertionError, match="incompatible"):
        render(more=("--kube-version", "1.28.0"))


def test_without_autoscaling_the_number_of_pods_is_fixed() -> None:
    objects = render(*WITHOUT_AUTOSCALING, "replicas=4")
    assert one(objects, "Deployment", "inference")["spec"]["replicas"] == 4
    kinds = {each["kind"] for each in objects}
    assert not kinds & {"HorizontalPodAutoscaler", "ServiceMonitor", "PrometheusRule"}


def test_a_buffer_is_added_to_the_calls_in_flight() -> None:
    objects = render("autoscaling.spareReplicas=2")
    [rule] = one(objects, "PrometheusRule", "-autoscaling")["spec"]["groups"][0]["rules"]
    [metric] = one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["object"]["metric"]["name"] == rule["record"] == "percore_desired_replicas"
    assert rule["expr"].endswith("+ 2")
    assert 'service="first-percore-gateway"' in rule["expr"]


def test_gateways_are_scraped_often_enough_for_a_burst_to_be_seen() -> None:
    monitors = [each for each in render() if each["kind"] == "ServiceMonitor"]
    intervals = {each["metadata"]["name"]: each["spec"]["endpoints"][0]["interval"] for each in monitors}
    assert intervals == {"first-percore-gateway": "2s", "first-percore-inference": "10s"}


def test_a_service_monitor_takes_one_service_so_that_no_gateway_is_counted_twice() -> None:
    objects = render()
    services = [each for each in objects if each["kind"] == "Service"]
    for monitor in (each for each in objects if each["kind"] == "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        taken = [each["metadata"]["name"] for each in services if wanted <= each["metadata"]["labels"].items()]
        assert taken == [monitor["metadata"]["name"]]
        ports = [port["name"] for each in services if each["metadata"]["name"] in taken for port in each["spec"]["ports"]]
        assert monitor["spec"]["endpoints"][0]["port"] in ports


@pytest.mark.parametrize(
    ("value", "rules"),
    [
        ("true", [("discovery.k8s.io", "endpointslices", ["list", "watch"]), ("", "pods", ["list", "patch"])]),
        ("false", [("discovery.k8s.io", "endpointslices", ["list", "watch"])]),
    ],
)
def test_the_gateway_has_only_the_rights_that_it_needs(value: str, rules: list[tuple[str, str, list[str]]]) -> None:
    objects = render(f"gateway.deletionCosts.enabled={value}")
    role = one(objects, "Role")
    found = [
        (group, name, each["verbs"]) for each in role["rules"] for group in each["apiGroups"] for name in each["resources"]
    ]
    assert found == rules
    assert not [each for each in objects if each["kind"].startswith("Cluster")]
    binding = one(objects, "RoleBinding")
    assert [each["name"] for each in binding["subjects"]] == ["first-percore-gateway"]
    policies = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"]
    assert len(policies) == (1 if value == "true" else 0)


SCRAPER = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
NAMED = "networkPolicy.scrapers[0].namespaceSelector.matchLabels.name=monitoring"
CALLER = "networkPolicy.callers[0].namespaceSelector.matchLabels.name=callers"


def _peers(component: str, port: int, *values: str) -> list[Object] | None:
    """Return the peers that may connect to a port of a component; None if all may."""
    rules = one(render(*values), "NetworkPolicy", f"-{component}")["spec"]["ingress"]
    for_port = [rule for rule in rules if {"port": port} in rule["ports"]]
    assert for_port
    return [peer for rule in for_port for peer in rule["from"]] if all("from" in rule for rule in for_port) else None


def test_inference_pods_take_calls_from_gateways_alone_and_open_no_connections() -> None:
    policy = one(render(), "NetworkPolicy", "inference")["spec"]
    assert policy["egress"] == []
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    [source] = _peers("inference", 8080) or []
    assert source["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"


def test_status_servers_answer_gateways_and_the_scrapers_that_are_named() -> None:
    gateway, scraper = _peers("inference", 9090, NAMED, CALLER) or []
    assert gateway["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert scraper == SCRAPER


def test_metrics_of_gateways_are_for_the_scrapers_that_are_named_and_not_for_callers() -> None:
    assert _peers("gateway", 9090, NAMED, CALLER) == [SCRAPER]


def test_everyone_may_call_and_read_metrics_if_no_peers_are_named() -> None:
    assert _peers("gateway", 8080) is None
    assert _peers("gateway", 9090) is None


def test_the_gateway_reaches_its_pods_and_the_api_server() -> None:
    pods, api_server = one(render(), "NetworkPolicy", "-gateway")["spec"]["egress"]
    [peer] = pods["to"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "inference"
    assert pods["ports"] == [{"port": 8080}, {"port": 9090}]
    assert api_server == {"ports": [{"port": 443}, {"port": 6443}, {"port": 8443}, {"port": 16443}]}


def test_the_ports_of_the_api_server_are_a_value() -> None:
    given = ("networkPolicy.apiServerPorts={443,16443}",)
    _, api_server = one(render(*given), "NetworkPolicy", "-gateway")["spec"]["egress"]
    assert api_server == {"ports": [{"port": 443}, {"port": 16443}]}


@pytest.mark.parametrize(
    "release", ["a", "percore", "first", "my-percore-2", "2nd", "a.b", "x" * 53, "x" * 52 + "y", "percore" * 7]
)
def test_any_release_name_gives_names_that_services_and_pods_may_have(release: str) -> None:
    for each in render(release=release):
        name = each["metadata"]["name"]
        if not each["kind"].startswith("ValidatingAdmissionPolicy"):
            assert len(name) <= 57
            assert name.replace("-", "").isalnum()
            assert name[0].isalpha()
            assert name == name.lower()


def test_two_releases_in_one_namespace_share_no_name_and_no_pod() -> None:
    releases = ["first", "second", "first-percore-gateway", "a.b", "a-b", "x" * 52 + "y", "x" * 52 + "z"]
    rendered = {release: render(release=release) for release in releases}
    seen: set[tuple[str, str]] = set()
    for objects in rendered.values():
        names = {(each["kind"], each["metadata"]["name"]) for each in objects}
        assert not names & seen
        seen |= names
    for release, objects in rendered.items():
        for labels in _selectors(objects):
            assert labels["app.kubernetes.io/instance"] == release


def _selectors(objects: list[Object]) -> list[dict[str, str]]:
    """Return every selector of pods, of whatever kind of object."""
    found = []
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            found.append(spec["selector"])
        elif each["kind"] in {"Deployment", "PodDisruptionBudget"}:
            found.append(spec["selector"]["matchLabels"])
        elif each["kind"] == "NetworkPolicy":
            found.append(spec["podSelector"]["matchLabels"])
    assert len(found) == 9
    return found


def test_selectors_select_the_pods_they_mean() -> None:
    objects = render()
    for component in ("inference", "gateway"):
        template = one(objects, "Deployment", component)["spec"]["template"]
        labels = template["metadata"]["labels"]
        selecting = [each for each in _selectors(objects) if each.items() <= labels.items()]
        assert len(selecting) == (4 if component == "inference" else 5)


def test_the_gateway_service_has_the_release_s_full_name() -> None:
    [port] = one(render(), "Service", "first-percore")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8080, "calls")


def test_the_notes_say_how_to_reach_this_release() -> None:
    said = notes(release="mine", namespace="there")
    assert "kubectl --namespace there port-forward service/mine-percore 8080:8080" in said
    assert 'curl -i http://127.0.0.1:8080/v1/models/digits:predict -d \'{"instances":[[' in said
    assert "kubectl --namespace there get hpa mine-percore-inference" in said
    assert "Install prometheus-adapter" in said
    assert "helm --namespace there test mine --timeout " in said
    adapter = ("--api-versions", "custom.metrics.k8s.io/v1beta1")
    assert "Install prometheus-adapter" not in notes(more=adapter)


def test_the_notes_and_the_test_of_an_own_handler_do_not_call_the_demo_model() -> None:
    values = (*WITHOUT_AUTOSCALING, "handler=fortune:Fortune")
    assert "digits" not in notes(*values)
    [container] = one(render(*values), "Pod")["spec"]["containers"]
    assert environment(container)["EXAMPLE_PATH"] == ""


def test_an_app_is_known_to_the_worker_and_to_the_gateway_which_also_has_the_paths_of_probes() -> None:
    objects = render(*APP)
    [worker] = _spec(objects, "inference")["containers"]
    [gateway] = _spec(objects, "gateway")["containers"]
    assert settings.load(environment(worker)).app.target == "myapp:create_app()"
    read = gateway_settings.load(environment(gateway))
    assert (read.app.target, read.gateway.health_paths) == ("myapp:create_app()", frozenset({"/", "/health"}))
    for each in (*containers(_spec(render(), "inference")), *containers(_spec(render(), "gateway"))):
        assert not environment(each).keys() & {"PERCORE_APP", "PERCORE_GATEWAY_HEALTH_PATHS"}


def test_the_notes_and_the_test_of_an_app_call_it_only_as_the_example_says() -> None:
    said = notes(*WITHOUT_AUTOSCALING, *APP)
    assert "curl -i http://127.0.0.1:8080/\n" in said
    assert "loaded the app" in said
    assert "digits" not in said
    [container] = one(render(*WITHOUT_AUTOSCALING, *APP), "Pod")["spec"]["containers"]
    assert environment(container)["EXAMPLE_PATH"] == ""
    example = (*WITHOUT_AUTOSCALING, *APP, "exampleCall.path=/items?kind=a&kind=b", "exampleCall.body=")
    assert "curl -i 'http://127.0.0.1:8080/items?kind=a&kind=b'\n" in notes(*example)
    [container] = one(render(*example), "Pod")["spec"]["containers"]
    assert (environment(container)["EXAMPLE_PATH"], environment(container)["EXAMPLE_BODY"]) == ("/items?kind=a&kind=b", "")
    assert "curl -i http://127.0.0.1:8080/predict -d 'a'\n" in notes(
        *WITHOUT_AUTOSCALING, *APP, "exampleCall.path=/predict", "exampleCall.body=a"
    )


def test_the_test_calls_the_gateway_of_its_release() -> None:
    [container] = one(render(release="mine"), "Pod")["spec"]["containers"]
    assert environment(container)["GATEWAY"] == "http://mine-percore:8080"


def test_the_right_to_patch_pods_is_restricted_if_the_cluster_has_admission_policies() -> None:
    for version, known in (("1.29.4", False), ("1.30.0", True)):
        kinds = {each["kind"] for each in render(more=("--kube-version", version))}
        assert ("ValidatingAdmissionPolicy" in kinds) is known
    assert "ValidatingAdmissionPolicy" not in {each["kind"] for each in render("gateway.deletionCosts.admissionPolicy=false")}


def test_images_have_the_version_of_the_chart_unless_a_value_names_another() -> None:
    images = {each["image"] for _, spec in pod_specs(render()) for each in containers(spec)}
    assert images == {f"localhost/percore/demo:{__version__}", f"localhost/percore/gateway:{__version__}"}
    values = ("image.repository=a/b", "image.tag=c", "gateway.image.repository=d", "gateway.image.tag=e")
    images = {each["image"] for _, spec in pod_specs(render(*values)) for each in containers(spec)}
    assert images == {"a/b:c", "d:e"}
    digest = f"sha256:{'0a' * 32}"
    images = {each["image"] for _, spec in pod_specs(render(*values, f"image.digest={digest}")) for each in containers(spec)}
    assert images == {f"a/b@{digest}", "d:e"}
    assert f"version: {__version__}" in (CHART / "Chart.yaml").read_text()


def test_the_memory_of_the_gateway_grows_with_its_queue_and_with_the_spool_in_memory() -> None:
    def memory(*values: str) -> str:
        resources = _gateway(*values)["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        return str(resources["limits"]["memory"])

    assert memory() == "408Mi"
    assert memory("queue.length=9000") == "595Mi", "9000 x 24 KiB are 210.9 MiB, rounded up"
    assert memory("gateway.spool.memoryBytes=1073741824") == "1368Mi"
    assert memory("gateway.memory=1Gi", "queue.length=9000") == "1Gi"


def _spec(objects: list[Object], component: str) -> Object:
    spec: Object = one(objects, "Deployment", component)["spec"]["template"]["spec"]
    return spec


def _limits(spec: Object) -> settings.LimitSettings:
    return settings.load(environment(spec["containers"][0])).limits


def test_the_network_policy_admits_helm_test_beside_all_callers() -> None:
    objects = render("networkPolicy.callers[0].podSelector.matchLabels.role=caller")
    [calls, _] = one(objects, "NetworkPolicy", "first-percore-gateway")["spec"]["ingress"]
    selected = [peer["podSelector"]["matchLabels"] for peer in calls["from"]]
    labels = one(objects, "Pod")["metadata"]["labels"]
    assert {"role": "caller"} in selected
    assert any(wanted.items() <= labels.items() for wanted in selected)
