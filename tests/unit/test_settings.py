import dataclasses

import pytest
from percore import settings
from percore.errors import SettingsError
from percore.gateway import gateway_settings


def test_defaults_are_read_from_an_empty_environment() -> None:
    read = settings.load({})
    assert read.server.port == 8080
    assert read.server.host == "127.0.0.1"
    assert read.cores.per_call == 1


def test_an_empty_value_counts_as_unset() -> None:
    assert settings.load({"PERCORE_PORT": ""}).server.port == 8080


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("PERCORE_PORT", "80a", "a whole number from 1 to 65535"),
        ("PERCORE_PORT", "0", "a whole number from 1 to 65535"),
        ("PERCORE_RUN_TIMEOUT", "0", "seconds, more than 0"),
        ("PERCORE_RUN_TIMEOUT", "nan", "seconds, more than 0"),
        ("PERCORE_RUN_TIMEOUT", "inf", "seconds, more than 0"),
        ("PERCORE_HANDLER", "module.Class", "`module:Class`"),
        ("PERCORE_APP", "folder/myapp:app", "`module:app` or `module:factory()`"),
        ("PERCORE_APP", "myapp:", "`module:app` or `module:factory()`"),
        ("PERCORE_APP", "myapp:wsgi.app", "`module:app` or `module:factory()`"),
        ("PERCORE_APP", "myapp:create_app(size)", "`module:app` or `module:factory()`"),
        ("PERCORE_LOG_LEVEL", "loud", "one of `debug`"),
        ("PERCORE_ON_CLIENT_DISCONNECT", "maybe", "one of `end`"),
        ("PERCORE_MODEL_LABELS", "digits=1", "`MODEL:LABEL=VERSION`"),
        ("PERCORE_MODEL_TAGS", "serve,,tpu", "names with commas between them"),
        ("PERCORE_ALLOW_CODE", "true", "`yes` or `no`"),
        ("PERCORE_MAX_BODY_BYTES", "1e6", "a whole number"),
    ],
)
def test_a_bad_value_is_refused_naming_key_value_and_rule(key: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load({key: value})
    assert f"{key}={value!r}: must be" in str(caught.value)
    assert rule in str(caught.value)


def test_a_misspelt_key_is_refused_with_a_list_of_all_keys() -> None:
    with pytest.raises(SettingsError, match=r"PERCORE_PROT: no such setting; known: .*PERCORE_PORT"):
        settings.load({"PERCORE_PROT": "80"})


def test_labels_are_read_per_model() -> None:
    read = settings.load({"PERCORE_MODEL_LABELS": "digits:stable=1, digits:canary=2,burn:stable=7"})
    assert read.models.labels == {"digits": {"stable": 1, "canary": 2}, "burn": {"stable": 7}}


def test_tags_and_the_permission_for_code_are_read() -> None:
    assert (settings.load({}).models.tags, settings.load({}).models.allow_code) == (("serve",), False)
    read = settings.load({"PERCORE_MODEL_TAGS": "serve, tpu", "PERCORE_ALLOW_CODE": "yes"})
    assert (read.models.tags, read.models.allow_code) == (("serve", "tpu"), True)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.load({}).server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", ["myapp", "myapp:app", "my.app:create_app()", "my-app:make('a', b=1)"])
def test_an_app_is_named_as_gunicorn_names_it_and_the_gateway_reads_the_same_key(value: str) -> None:
    assert settings.load({"PERCORE_APP": value}).app.target == value
    assert gateway_settings.load({"PERCORE_APP": value}).app.target == value


def test_an_app_and_a_handler_at_once_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"PERCORE_APP='a:app' PERCORE_HANDLER='b:B': set one of them"):
        settings.load({"PERCORE_APP": "a:app", "PERCORE_HANDLER": "b:B"})
