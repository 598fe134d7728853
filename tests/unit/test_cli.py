"""The arguments of `percore serve`."""

import os

import pytest
from click.testing import CliRunner
from percore import settings, supervisor
from percore.cli import cli

SERVED = ("PERCORE_APP", "PERCORE_HANDLER", "PERCORE_MODEL_REPOSITORY")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[settings.Settings]:
    """Return the list of settings with which the command would have started a service. No service is started."""
    found: list[settings.Settings] = []
    for key in SERVED:
        monkeypatch.setenv(key, "to be removed")  # so that the environment is restored
        monkeypatch.delenv(key)

    def run(read: settings.Settings) -> int:
        found.append(read)
        return 0

    monkeypatch.setattr(supervisor, "run", run)
    return found


def test_the_argument_for_an_app_has_the_form_of_gunicorn(served: list[settings.Settings]) -> None:
    assert CliRunner().invoke(cli, ["serve", "myapp:create_app()"]).exit_code == 0
    assert served[0].app.target == os.environ["PERCORE_APP"] == "myapp:create_app()"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["myapp:app"], "PERCORE_APP"),
        (["--handler", "a:B"], "PERCORE_HANDLER"),
        (["--models", "m"], "PERCORE_MODEL_REPOSITORY"),
    ],
)
def test_an_argument_overrides_the_environment(
    arguments: list[str], key: str, served: list[settings.Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"PERCORE_APP": "other:app", "PERCORE_HANDLER": "other:Other", "PERCORE_MODEL_REPOSITORY": "other"}
    for each, value in environ.items():
        monkeypatch.setenv(each, value)
    assert CliRunner().invoke(cli, ["serve", *arguments]).exit_code == 0
    assert {each for each in SERVED if each in os.environ} == {key}
    assert len(served) == 1


@pytest.mark.parametrize("arguments", [["myapp:app", "--handler", "a:B"], ["--models", "m", "--handler", "a:B"]])
def test_two_kinds_of_models_at_once_are_refused(arguments: list[str], served: list[settings.Settings]) -> None:
    done = CliRunner().invoke(cli, ["serve", *arguments])
    assert done.exit_code == 2
    assert "MODULE:APP, --models and --handler: give one of them" in done.output
    assert not served
