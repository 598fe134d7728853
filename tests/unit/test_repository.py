from pathlib import Path

import pytest
from percore import settings
from percore.errors import LoadError
from percore.model_store import Labels, load_models, scan


def make(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def found(root: Path, labels: Labels | None = None) -> list[tuple[str, int, str, tuple[str, ...]]]:
    return [(each.info.name, each.info.version, each.info.platform, each.info.labels) for each in scan(root, labels or {})]


def test_every_version_of_every_model_is_found_by_number_not_by_text(tmp_path: Path) -> None:
    make(tmp_path, "b/10/saved_model.pb", "b/9/saved_model.pb", "a/1/model.keras")
    assert found(tmp_path) == [
        ("a", 1, "keras", ()),
        ("b", 9, "tensorflow_savedmodel", ()),
        ("b", 10, "tensorflow_savedmodel", ()),
    ]


def test_the_folder_of_a_version_with_leading_zeros_is_kept_as_it_is_written(tmp_path: Path) -> None:
    (each,) = scan(make(tmp_path, "a/0007/saved_model.pb"), {})
    assert (each.info.version, each.folder) == (7, tmp_path / "a" / "0007")


def test_stray_files_and_folders_that_are_no_versions_are_ignored_with_a_debug_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strays = ("built", "a/README.md", "a/latest/saved_model.pb", "a/2/notes.txt", ".git/config", "lost+found/x")
    with caplog.at_level("DEBUG", "percore.model_store"):
        assert found(make(tmp_path, "a/1/saved_model.pb", *strays)) == [("a", 1, "tensorflow_savedmodel", ())]
    for name in ("built", "README.md", "latest", "a/2", ".git", "lost+found"):
        assert any(name in record.message and record.levelname == "DEBUG" for record in caplog.records)


def test_a_folder_with_both_files_is_a_saved_model(tmp_path: Path) -> None:
    assert found(make(tmp_path, "a/1/saved_model.pb", "a/1/model.keras"))[0][2] == "tensorflow_savedmodel"


@pytest.mark.parametrize("files", [("built",), ("..data/1/saved_model.pb",)])
def test_a_repository_without_models_stops_the_start_and_says_the_layout(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(LoadError, match=r"NAME/VERSION/saved_model\.pb or NAME/VERSION/model\.keras") as error:
        scan(make(tmp_path, *files), {})
    assert str(tmp_path) in str(error.value)


def test_a_missing_repository_stops_the_start_and_says_path_and_layout(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="nowhere cannot be read: No such file or directory; expected NAME/VERSION"):
        scan(tmp_path / "nowhere", {})


def test_a_model_without_a_version_stops_the_start_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model 'empty' in .* has no version"):
        scan(make(tmp_path, "good/1/saved_model.pb", "empty/new/saved_model.pb"), {})


def test_a_version_that_is_there_twice_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="model 'a' has version 1 twice"):
        scan(make(tmp_path, "a/1/saved_model.pb", "a/01/saved_model.pb"), {})


def test_a_model_whose_name_no_route_can_carry_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="its name must be 1 to 128 letters"):
        scan(make(tmp_path, "my model/1/saved_model.pb"), {})


def test_labels_are_set_on_the_versions_that_they_name(tmp_path: Path) -> None:
    make(tmp_path, "a/1/saved_model.pb", "a/2/saved_model.pb")
    labels = {"a": {"stable": 1, "old": 1, "canary": 2}}
    assert [each[3] for each in found(tmp_path, labels)] == [("old", "stable"), ("canary",)]


@pytest.mark.parametrize(("model", "there"), [("a", "1"), ("b", "none")])
def test_a_label_for_a_missing_version_stops_the_start(tmp_path: Path, model: str, there: str) -> None:
    with pytest.raises(
        LoadError, match=f"label 'stable' of model '{model}' names version 3, which is not there; versions: {there}"
    ):
        scan(make(tmp_path, "a/1/saved_model.pb"), {model: {"stable": 3}})


def test_a_handler_is_loaded_instead_of_the_repository_with_its_name_and_labels(tmp_path: Path) -> None:
    environ = {
        "PERCORE_HANDLER": "percore.handlers.echo:Echo",
        "PERCORE_HANDLER_NAME": "mine",
        "PERCORE_MODEL_LABELS": "mine:stable=1",
        "PERCORE_MODEL_REPOSITORY": str(tmp_path / "nowhere"),
    }
    (model,) = load_models(settings.load(environ), threads=1)
    assert (model.info.name, model.info.version, model.info.labels) == ("mine", 1, ("stable",))


def test_a_label_for_another_version_of_a_handler_stops_the_start() -> None:
    environ = {"PERCORE_HANDLER": "percore.handlers.echo:Echo", "PERCORE_MODEL_LABELS": "default:stable=2"}
    with pytest.raises(LoadError, match="label 'stable' of model 'default' names version 2, which is not there; versions: 1"):
        load_models(settings.load(environ), threads=1)


def test_a_saved_model_as_text_is_a_saved_model(tmp_path: Path) -> None:
    assert found(make(tmp_path, "m/1/saved_model.pbtxt")) == [("m", 1, "tensorflow_savedmodel", ())]


def test_a_version_that_no_protocol_can_carry_stops_the_start_with_the_rule(tmp_path: Path) -> None:
    largest = 2**63 - 1
    assert found(make(tmp_path, f"m/{largest}/saved_model.pb")) == [("m", largest, "tensorflow_savedmodel", ())]
    make(tmp_path, "m/20251231235959000000/saved_model.pb")
    with pytest.raises(LoadError, match=r"20251231235959000000: a version must be at most 9223372036854775807"):
        scan(tmp_path, {})


def test_a_missing_module_of_percore_import_stops_the_start(tmp_path: Path) -> None:
    make(tmp_path, "m/1/model.keras")
    given = settings.load({"PERCORE_MODEL_REPOSITORY": str(tmp_path), "PERCORE_IMPORT": "no_such.layers"})
    with pytest.raises(LoadError, match=r"PERCORE_IMPORT: there is no module 'no_such' in .* or installed"):
        load_models(given, threads=1)
