"""Locks and sockets in a folder whose files cleaners remove: percore creates them again."""

import errno
import os
import time
from pathlib import Path

import pytest
from percore import state_dir
from percore.errors import StartError
from percore.state_dir import Lock
from percore.status.event_receiver import EventReceiver
from percore.status.workers import Workers, WorkerState
from percore.worker.report import Reporter
from percore.worker_metrics import WorkerMetrics

DAY = 24 * 3600


def age(path: Path) -> float:
    return time.time() - path.lstat().st_mtime


def test_a_lock_that_was_removed_is_taken_again_before_anybody_else_has_it(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.take()
    assert not second.take()
    (tmp_path / "lock").unlink()
    assert first.keep()
    assert not second.take()
    first.close()
    assert second.take()


def test_a_lock_that_was_removed_and_taken_by_another_is_known_to_be_lost(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.take()
    (tmp_path / "lock").unlink()
    assert second.take()
    assert not first.keep()
    assert second.keep()


def test_a_lock_whose_folder_was_removed_is_taken_again(tmp_path: Path) -> None:
    lock, other = Lock(tmp_path / "run/lock"), Lock(tmp_path / "run/lock")
    assert lock.take()
    (tmp_path / "run/lock").unlink()
    (tmp_path / "run").rmdir()
    assert lock.keep()
    assert not other.take()


def test_if_the_file_of_a_lock_is_removed_while_it_is_taken_a_new_file_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opens = tmp_path / "lock", os.open

    def open_and_lose(name: Path, flags: int, mode: int) -> int:
        monkeypatch.setattr(os, "open", opens)
        fd = opens(name, flags, mode)
        path.unlink()
        return fd

    lock = Lock(path)
    monkeypatch.setattr(os, "open", open_and_lose)
    assert lock.take()
    assert not Lock(path).take()


def test_a_lock_that_cannot_be_taken_again_stays_free_and_is_taken_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    (tmp_path / "lock").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        assert lock.keep()
    assert lock.keep()
    assert not Lock(tmp_path / "lock").take()


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_is_kept_does_not_grow_old(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.take()
    receiver = EventReceiver(tmp_path / "events.sock", Workers(WorkerMetrics()))
    for name, keep in (("lock", lock.keep), ("events.sock", receiver.keep_socket)):
        os.utime(tmp_path / name, (time.time() - DAY,) * 2)
        keep()
        assert age(tmp_path / name) < 60
        os.utime(tmp_path / name, (time.time() - 60,) * 2)
        keep()
        assert age(tmp_path / name) > 50, "it is written every second"
    receiver.close()


@pytest.mark.parametrize("whole_folder", [True, False])
def test_the_socket_of_events_is_created_again_and_workers_stay_connected(tmp_path: Path, whole_folder: bool) -> None:
    path, workers = tmp_path / "run/events.sock", Workers(WorkerMetrics())
    receiver, early, late = EventReceiver(path, workers), Reporter(path), Reporter(path)
    early.reconnect()
    receiver.receive(1)
    path.unlink()
    if whole_folder:
        path.parent.rmdir()
    late.reconnect()
    receiver.keep_socket()
    for reporter in (early, late):
        reporter.reconnect()
        reporter.loaded({"models": []})
        for _ in range(4):
            receiver.receive(0.05)
    assert workers.states()[WorkerState.FREE] == 2
    for each in (early, late, receiver):
        each.close()


def test_an_error_of_the_file_system_is_one_sentence_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", full)
    expected = r"core-0\.lock: cannot be used \(it is in PERCORE_STATE_DIR\): No space left on device"
    with pytest.raises(StartError, match=expected):
        Lock(tmp_path / "core-0.lock").take()


def test_a_folder_that_is_a_link_or_another_user_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("link", "dangling"):
        with pytest.raises(StartError, match="must be a folder, and is a symbolic link"):
            state_dir.ensure_owned(tmp_path / name)
    os.chown(tmp_path / "elsewhere", 4321, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(StartError, match="must belong to the user that runs the service"):
        state_dir.ensure_owned(tmp_path / "elsewhere")
