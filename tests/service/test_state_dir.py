"""The state directory: percore creates files again that a cleaner removes.

If the folder cannot be used, the service logs one line and ends.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.service import FAULTY, ROOT, Service, answer_of, eventually, processes_in


def folder_of(service: Service) -> Path:
    return Path(service.environ["PERCORE_STATE_DIR"])


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def cores_of(service: Service) -> list[set[int]]:
    return [os.sched_getaffinity(pid) for pid in service.workers]


@pytest.mark.parametrize("whole_folder", [True, False])
def test_files_that_a_cleaner_removes_are_created_again_and_no_call_is_lost(whole_folder: bool) -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        folder = folder_of(service)
        before, workers = names(folder) - {"supervisor.lock"}, service.workers
        running = service.send_call(sleep=4)
        service.until(executing=1)
        if whole_folder:
            shutil.rmtree(folder)
        else:
            for name in before:
                (folder / name).unlink()
        eventually(lambda: folder.exists() and before <= names(folder), 5)
        queued = [service.send_call(sleep=0) for _ in range(4)]
        assert [answer_of(each)[0] for each in (running, *queued)] == [200] * 5
        eventually(lambda: not set(workers) & set(service.workers), 20)
        service.ready(workers=2)
        assert sorted(map(sorted, cores_of(service))) == sorted(map(sorted, {frozenset(each) for each in cores_of(service)}))
        assert service.metric("percore_worker_restarts_total") == 0
        assert not [line for line in service.log() if "trace" in line]
        removed = [line["message"] for line in service.log() if "was removed" in line["message"]]
        assert 5 <= len(removed) <= 7, removed
        service.processes[0].terminate()
        assert service.processes[0].wait(20) == 0


def test_if_a_worker_dies_just_after_its_lock_was_removed_no_two_workers_share_a_core() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        for _ in range(3):
            for lock in folder_of(service).glob("core-*.lock"):
                lock.unlink()
            os.kill(service.workers[0], 9)
            eventually(lambda: len(service.workers) == 2)
            service.ready(workers=2)
        eventually(lambda: len({frozenset(each) for each in cores_of(service)}) == 2)


def test_a_service_that_stops_without_its_sockets_stops_as_always() -> None:
    with Service(handler=FAULTY).ready(workers=2) as service:
        running = service.send_call(sleep=1)
        service.until(executing=1)
        service.processes[0].terminate()
        for path in folder_of(service).glob("*.sock"):
            path.unlink()
        assert answer_of(running)[0] == 200
        assert service.processes[0].wait(20) == 0
        assert not [line for line in service.log() if "trace" in line]


@contextlib.contextmanager
def without_inodes(folder: Path, inodes: int) -> Iterator[None]:
    """Mount a file system with ``inodes`` inodes; its root takes one of them."""
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=0700,nr_inodes={inodes}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system mounts nothing for tests")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def ends_with_one_line(folder: Path, *command: str) -> str:
    """Start a process of the service and wait for its end; return its output, which must be one line for each process."""
    with Service(handler=FAULTY, state_dir=folder) as service:
        for process in service.processes:
            process.kill()
            process.wait()
        began = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "percore", *command],
            cwd=ROOT, env=service.environ, check=False, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert ended.returncode in (1, 78), ended
        assert time.monotonic() - began < 15
        eventually(lambda: not processes_in(service.environ_mark))
        lines = [line for line in ended.stderr.splitlines() if "cannot start" in line]
        assert "Traceback" not in ended.stderr, ended.stderr
        assert '"trace"' not in ended.stderr, ended.stderr
        assert "started again" not in ended.stderr, ended.stderr
        said = {json.loads(line)["message"] if line.startswith("{") else line for line in lines}
        # Two processes may each say that they cannot start, for the same reason.
        assert len({line.rpartition(": ")[2] for line in said}) == 1, ended.stderr
        return "\n".join(said)


COMMANDS = {"serve": ["serve"], "pod": ["worker"], "status server": ["status-server"], "workers": ["worker", "--workers", "1"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_ours_ends_the_service_with_one_line(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "run"
    (tmp_path / "real").mkdir()
    folder.symlink_to("real")
    assert "is a symbolic link" in ends_with_one_line(folder, *COMMANDS[command])
    folder.unlink()
    folder.write_text("a file")
    assert "the folder cannot be created" in ends_with_one_line(folder, *COMMANDS[command])
    folder.unlink()
    if os.geteuid() == 0:
        folder.mkdir()
        os.chown(folder, 4321, 4321)
        assert "must belong to the user" in ends_with_one_line(folder, *COMMANDS[command])


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("serve", "supervisor.lock"),
        ("serve", "events.sock"),
        ("serve", "worker-0.sock"),
        ("serve", "core-*.lock"),
        ("pod", "core-*.lock"),
        ("status server", "events.sock"),
    ],
)
def test_a_folder_in_a_file_s_place_ends_the_service_with_one_line_that_names_it(
    tmp_path: Path, command: str, name: str
) -> None:
    for core in os.sched_getaffinity(0):
        (tmp_path / name.replace("*", str(core))).mkdir(exist_ok=True)
    assert name.partition("*")[0] in ends_with_one_line(tmp_path, *COMMANDS[command])


@pytest.mark.parametrize(("command", "inodes"), [("serve", 1), ("serve", 2), ("serve", 3), ("pod", 1), ("status server", 1)])
def test_a_file_system_without_a_free_inode_ends_the_service_with_one_line(tmp_path: Path, command: str, inodes: int) -> None:
    with without_inodes(tmp_path, inodes):
        assert "No space left on device" in ends_with_one_line(tmp_path, *COMMANDS[command])
