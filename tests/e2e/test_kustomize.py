"""`kubectl apply -k` of each overlay, unchanged except for the tag of the images; with the demo models, on TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml

from tests import kustomize
from tests.chart.harness import CHART
from tests.e2e import objects
from tests.e2e.harness import SECONDS, Release, documents, eventually, images, kubectl, run

NEEDS = {"production": ("servicemonitors.monitoring.coreos.com", "needs the Prometheus operator: chart kube-prometheus-stack")}
EXAMPLE = yaml.safe_load((CHART / "values.yaml").read_text())["exampleCall"]


@pytest.fixture(params=sorted(kustomize.CHART_VALUES))
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Release]:
    """An installed overlay, in the namespace that it names."""
    overlay: str = request.param
    if overlay in NEEDS and not objects.knows(NEEDS[overlay][0]):
        pytest.skip(NEEDS[overlay][1])
    folder = kustomize.KUSTOMIZE / "overlays" / overlay
    built = kustomize.build(folder)
    [namespace] = [name for kind, name in built if kind == "Namespace"]
    assert not documents("namespaces", "--field-selector", f"metadata.name={namespace}"), f"somebody else's: {namespace}"
    tag = images("demo")["image"]["tag"]
    tagged = [{"name": name, "newTag": tag} for name in ("localhost/percore/demo", "localhost/percore/gateway")]
    outer = {"resources": [os.path.relpath(folder, tmp_path.resolve())], "images": tagged}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(outer))
    release = Release("percore", namespace)
    try:
        said = run("kubectl", "apply", "-k", str(tmp_path))
        assert len(said.splitlines()) == len(built)
        yield release
    finally:
        run("kubectl", "delete", "-k", str(tmp_path), "--wait=false")
        kubectl("-n", namespace, "delete", "pods", "--all", "--grace-period=0", "--force", "--wait=false")
        eventually(lambda: not documents("namespaces", "--field-selector", f"metadata.name={namespace}"), every=1)
        assert objects.of(namespace) == set()


def test_an_overlay_is_admitted_becomes_ready_and_answers(installed: Release) -> None:
    for component in ("gateway", "inference"):
        run(
            "kubectl",
            "-n",
            installed.namespace,
            "rollout",
            "status",
            f"deployment/percore-{component}",
            f"--timeout={SECONDS}s",
        )
    with installed.forwarded() as gateway:
        answer = requests.post(gateway + EXAMPLE["path"], data=EXAMPLE["body"], timeout=SECONDS)
    assert answer.json()["predictions"][0]["digit"] == 7


@pytest.mark.parametrize("overlay", sorted(kustomize.CHART_VALUES))
def test_an_overlay_and_the_chart_with_its_values_install_the_same(overlay: str) -> None:
    """The same test is in tests/chart, but kubectl may be missing there."""
    assert kustomize.drift(overlay) == {}
