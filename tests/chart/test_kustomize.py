"""Helm and Kustomize install the same objects."""

import shutil
from pathlib import Path

import pytest
import yaml

from deploy.kustomize import manifests
from deploy.kustomize.replacements import replacements
from tests import kustomize
from tests.chart.harness import WITHOUT_AUTOSCALING, Object

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not on the PATH; tests/e2e/test_kustomize.py builds the same overlays"
)
EVERYTHING = ["monitoring", "network-policy"]


def read(*folders: str) -> dict[kustomize.Key, Object]:
    """Return the objects of folders, as Kustomize collects them before it applies patches."""
    objects: list[Object] = []
    for folder in folders:
        listed = yaml.safe_load((kustomize.KUSTOMIZE / folder / "kustomization.yaml").read_text())["resources"]
        objects += [each for file in listed for each in yaml.safe_load_all((kustomize.KUSTOMIZE / folder / file).read_text())]
    return kustomize.by_key(objects)


@pytest.mark.parametrize("engine", ["hpa", "keda"])
def test_base_and_components_hold_the_chart_s_objects_each_once(engine: str) -> None:
    found = read("base", *(f"components/{each}" for each in [*EVERYTHING, engine]))
    assert found["Deployment", "percore-inference"]["spec"].pop("replicas") == 1
    assert kustomize.difference(found, kustomize.chart(f"autoscaling.engine={engine}", namespace="percore")) == {}


def test_the_base_alone_is_the_chart_on_a_plain_cluster() -> None:
    values = (*WITHOUT_AUTOSCALING, "networkPolicy.enabled=false")
    assert kustomize.difference(read("base"), kustomize.chart(*values, namespace="percore")) == {}


@needs_kubectl
def test_with_stored_calls_the_base_is_the_chart_that_stores_calls(tmp_path: Path) -> None:
    overlay = kustomize.write_overlay(tmp_path, [*EVERYTHING, "hpa", "stored-calls"], "elsewhere")
    built = kustomize.build(overlay)
    assert kustomize.difference(built, kustomize.chart("calls.enabled=true", namespace="elsewhere")) == {}


def test_a_patch_adds_to_the_end_of_a_list_or_fails_with_the_reason() -> None:
    old, new = {"a": [{"b": 1}], "c": 2}, {"a": [{"b": 3}, {"d": 4}], "e/f": 5}
    assert list(manifests.changes(old, new)) == [
        {"op": "replace", "path": "/a/0/b", "value": 3},
        {"op": "add", "path": "/a/-", "value": {"d": 4}},
        {"op": "remove", "path": "/c"},
        {"op": "add", "path": "/e~1f", "value": 5},
    ]
    with pytest.raises(TypeError, match="/a: a patch can only lengthen a list"):
        list(manifests.changes({"a": [1, 2]}, {"a": [1]}))


def test_no_object_of_an_overlay_has_labels_of_helm() -> None:
    for path in kustomize.KUSTOMIZE.rglob("*.yaml"):
        text = path.read_text()
        assert "helm.sh" not in text, path
        assert "managed-by" not in text, path


def test_overlays_list_files_that_exist_and_nothing_from_elsewhere() -> None:
    overlays = list((kustomize.KUSTOMIZE / "overlays").iterdir())
    assert {each.name for each in overlays} == kustomize.CHART_VALUES.keys()
    for overlay in overlays:
        document = yaml.safe_load((overlay / "kustomization.yaml").read_text())
        for listed in [
            *document["resources"],
            *document.get("components", []),
            *(each["path"] for each in document["replacements"]),
        ]:
            assert (overlay / listed).exists(), listed
            assert "://" not in listed


def test_a_file_whose_template_is_gone_is_stale() -> None:
    pages = manifests.pages()
    assert manifests.stale(pages) == []
    del pages["components/keda/autoscaling.yaml"]
    assert manifests.stale(pages) == ["components/keda/autoscaling.yaml"]


def test_a_namespace_is_found_in_every_text_that_names_it() -> None:
    document = {
        "kind": "Rule",
        "metadata": {"name": "there.percore", "namespace": "there"},
        "spec": {"names": ["a", "there"], "rules": [{"name": "r", "expr": 'x{namespace="there"} / y{namespace="there"}'}]},
        "subjects": [{"namespace": "there"}],
    }
    [replacement] = yaml.safe_load(replacements([document], "there"))
    found = [(*each["fieldPaths"], each.get("options", {}).get("index")) for each in replacement["targets"]]
    assert found == [
        ("spec.names.1", None),
        ("spec.rules.[name=r].expr", 1),
        ("spec.rules.[name=r].expr", 3),
        ("metadata.name", 0),
    ]


def test_a_namespace_that_kustomize_could_not_replace_is_an_error() -> None:
    document = {"kind": "Rule", "metadata": {"name": "a"}, "spec": {"text": "in-there-too"}}
    with pytest.raises(ValueError, match=r"Rule a: spec\.text: Kustomize cannot"):
        replacements([document], "there")


@needs_kubectl
@pytest.mark.parametrize("overlay", sorted(kustomize.CHART_VALUES))
def test_an_overlay_and_the_chart_with_its_values_install_the_same(overlay: str) -> None:
    assert kustomize.drift(overlay) == {}


@needs_kubectl
@pytest.mark.parametrize("engine", ["hpa", "keda"])
def test_an_overlay_of_one_s_own_has_its_namespace_wherever_the_chart_has_it(tmp_path: Path, engine: str) -> None:
    overlay = kustomize.write_overlay(tmp_path, [*EVERYTHING, engine], "elsewhere")
    built = kustomize.build(overlay)
    assert kustomize.difference(built, kustomize.chart(f"autoscaling.engine={engine}", namespace="elsewhere")) == {}
