from pathlib import Path

import pytest
from gunicorn.config import Config
from percore import cores, settings
from percore.errors import SettingsError
from percore.worker.arbiter import GunicornApp, options

READ = settings.load(
    {
        "PERCORE_BODY_TIMEOUT": "2",
        "PERCORE_ANSWER_TIMEOUT": "2",
        "PERCORE_RUN_TIMEOUT": "10.5",
        "PERCORE_SHUTDOWN_TIMEOUT": "7.5",
    }
)


def test_gunicorns_own_timeout_is_longer_than_any_call_may_take() -> None:
    assert options(READ, None)["timeout"] == 2 + 10.5 + 2 + 30 + 0.5


def test_running_calls_get_the_shutdown_timeout_and_no_model_is_loaded_before_the_fork() -> None:
    chosen = options(READ, None)
    assert chosen["graceful_timeout"] == 8
    assert chosen["preload_app"] is False


def test_a_pod_has_one_worker_at_its_port() -> None:
    chosen = options(READ, None)
    assert (chosen["bind"], chosen["workers"]) == (["127.0.0.1:8080"], 1)


def test_each_worker_of_a_machine_has_a_unix_socket_of_its_own_in_the_state_dir() -> None:
    read = settings.load({"PERCORE_STATE_DIR": "/run/percore"})
    chosen = options(read, 3)
    assert chosen["bind"] == [f"unix:/run/percore/worker-{number}.sock" for number in range(3)]
    assert chosen["workers"] == 3


def test_an_address_of_ipv6_is_put_in_brackets() -> None:
    assert options(settings.load({"PERCORE_HOST": "::1"}), None)["bind"] == ["[::1]:8080"]


@pytest.mark.parametrize("workers", [None, 2])
def test_gunicorn_knows_every_option(workers: int | None) -> None:
    config = Config()
    for name, value in options(READ, workers).items():
        config.set(name, value)


def test_the_longest_allowed_state_dir_leaves_room_for_the_socket_of_the_last_worker() -> None:
    folder = "/" + "x" * (settings.LONGEST_FOLDER - 1)
    read = settings.load({"PERCORE_STATE_DIR": folder})
    assert len(str(read.server.worker_socket(9_999))) <= 107
    assert read.server.report_socket.parent == Path(folder)


@pytest.mark.parametrize(("usable", "per_call", "workers"), [((0, 1), 1, 3), ((0, 1, 2, 3), 2, 3)])
def test_more_workers_than_groups_of_cores_are_an_error_that_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, usable: tuple[int, ...], per_call: int, workers: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    read = settings.load({"PERCORE_CORES_PER_CALL": str(per_call)})
    with pytest.raises(SettingsError, match=f"--workers {workers}: must be at most 2"):
        GunicornApp(read, workers)


@pytest.mark.parametrize(("workers", "pins", "groups"), [(None, False, 1), (1, True, 1), (2, True, 2)])
def test_workers_of_a_machine_pin_themselves_and_that_of_a_pod_does_not(
    monkeypatch: pytest.MonkeyPatch, workers: int | None, pins: bool, groups: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: (0, 1))
    server = GunicornApp(READ, workers)
    assert server.pins_cores is pins
    assert len(server.groups) == groups
