"""Where the models of a release come from."""

import pytest

from tests.chart.harness import environment, one, render

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
