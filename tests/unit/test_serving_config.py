"""TensorFlow Serving's models.config: typical files, and the models that percore serves by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from percore.errors import LoadError
from percore.model_store import scan

LABELLED = """
# As TensorFlow Serving's documentation has it.
model_config_list {
  config {
    name: 'digits'
    base_path: '%(root)s/of/digits'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 1 versions: 3 } }
    version_labels { key: 'stable' value: 1 }
    version_labels { key: 'canary' value: 3 }
    logging_config { log_collector_config { type: "x" filename_prefix: "y" } sampling_config { sampling_rate: 0.01 } }
  }
  config: { name: "other", base_path: "relative", model_version_policy: { all: {} } }
}
"""


def write(root: Path, text: str) -> Path:
    for version in ("of/digits/1", "of/digits/2", "of/digits/3", "relative/007", "relative/8"):
        (root / version).mkdir(parents=True, exist_ok=True)
        (root / version / "saved_model.pb").touch()
    (root / "models.config").write_text(text % {"root": root})
    return root / "models.config"


def one(fields: str) -> str:
    return f"model_config_list {{ config {{ {fields} }} }}"


def test_models_versions_and_labels_are_those_of_the_file(tmp_path: Path) -> None:
    found = scan(write(tmp_path, LABELLED), {})
    assert [
        (each.info.name, each.info.version, each.info.labels, str(each.folder.relative_to(tmp_path))) for each in found
    ] == [
        ("digits", 1, ("stable",), "of/digits/1"),
        ("digits", 3, ("canary",), "of/digits/3"),
        ("other", 7, (), "relative/007"),
        ("other", 8, (), "relative/8"),
    ]


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [3]),
        ("model_version_policy {}", [3]),
        ("model_version_policy { latest {} }", [3]),
        ("model_version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("model_version_policy { latest { num_versions: 9 } }", [1, 2, 3]),
        ("model_version_policy { all {} }", [1, 2, 3]),
        ("model_version_policy { specific { versions: [2, 1, 2] } }", [1, 2]),
    ],
)
def test_the_version_policy_chooses_as_tensorflow_serving_does(tmp_path: Path, policy: str, versions: list[int]) -> None:
    found = scan(write(tmp_path, one(f'name: "a" base_path: "of/digits" {policy}')), {})
    assert [each.info.version for each in found] == versions


def test_labels_of_the_setting_are_added(tmp_path: Path) -> None:
    config = write(tmp_path, one('name: "a" base_path: "of/digits" version_labels { key: "old" value: 3 }'))
    assert scan(config, {"a": {"new": 3}})[0].info.labels == ("new", "old")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_config_list { config { title: 'a' } }", "is no models.config of TensorFlow Serving: 1:30 : .*title"),
        ("custom_model_config {}", "is no models.config"),
        ("", "model_config_list has no models"),
        (one("base_path: 'of'"), "model '': its name must be 1 to 128"),
        (one("name: 'a/b' base_path: 'of'"), "model 'a/b': its name must be 1 to 128"),
        (one("name: 'a'"), "model 'a': base_path '': must be a folder"),
        (
            one("name: 'a' base_path: 'gs://b/c'"),
            "base_path 'gs://b/c': must be a folder of this machine; `percore fetch` makes one",
        ),
        (one("name: 'a' base_path: 'of/digits' model_platform: 'onnx'"), "model_platform 'onnx': must be 'tensorflow'"),
        (one("name: 'a' base_path: 'nowhere'"), "nowhere cannot be read: No such file"),
        (one("name: 'a' base_path: 'of/digits' } config { name: 'a' base_path: 'of/digits'"), "model 'a' is there twice"),
        (
            one("name: 'a' base_path: 'of/digits' model_version_policy { specific { versions: 9 } }"),
            "model 'a' in .* has no version 9; versions: 1, 2, 3",
        ),
        (
            one("name: 'a' base_path: 'of/digits' model_version_policy { all {} latest {} }"),
            "has latest and all: must have one of them",
        ),
        (
            one("name: 'a' base_path: 'of/digits' version_labels { key: 'old' value: 1 }"),
            "label 'old' of model 'a' names version 1, which is not there; versions: 3",
        ),
    ],
)
def test_a_file_that_cannot_be_served_stops_the_start_and_names_the_rule(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        scan(write(tmp_path, text), {})
