import pytest
from gunicorn.config import Config
from percore import settings
from percore.worker.pod import PodWorker
from percore.worker.server import options
from percore.worker.shared import SharedWorker

READ = settings.load({"PERCORE_BODY_LIMIT": "2", "PERCORE_RUN_LIMIT": "10.5", "PERCORE_DRAIN_LIMIT": "7.5"})


def test_gunicorns_own_timeout_is_longer_than_any_call_may_take() -> None:
    assert options(READ, 1, None)["timeout"] == 2 + 10.5 + 2 + 30 + 0.5


def test_running_calls_get_the_drain_limit_and_nothing_is_loaded_before_the_fork() -> None:
    chosen = options(READ, 1, None)
    assert chosen["graceful_timeout"] == 8
    assert chosen["preload_app"] is False


@pytest.mark.parametrize(("fd", "worker", "bind"), [(None, PodWorker, "127.0.0.1:8080"), (7, SharedWorker, "fd://7")])
def test_a_shared_socket_makes_shared_workers_and_none_a_pod(fd: int | None, worker: type, bind: str) -> None:
    chosen = options(READ, 3, fd)
    assert chosen["worker_class"] is worker
    assert chosen["bind"] == [bind]


def test_an_address_of_ipv6_is_put_in_brackets() -> None:
    assert options(settings.load({"PERCORE_HOST": "::1"}), 1, None)["bind"] == ["[::1]:8080"]


def test_gunicorn_knows_every_option() -> None:
    config = Config()
    for name, value in options(READ, 1, None).items():
        config.set(name, value)
