"""What a container or a shell may lack: an init process, room in ``/dev/shm``, open outputs."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness.service import FAULTY, Service, answer_of, eventually, processes_below

FULL = 'mount -t tmpfs -o nr_inodes=1 tmpfs /dev/shm && exec "$@"'


def wrapped(handler: str, *command: str) -> Service:
    service = Service(handler=handler)
    service.program = [*command, *service.program]
    return service


def need_namespaces(*options: str) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare (util-linux)")
    if subprocess.run(["unshare", *options, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system makes no namespaces")


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def umask_of(pid: int) -> str:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Umask:")]
    return line


def test_as_the_first_process_of_a_container_the_service_reaps_what_handlers_left() -> None:
    options = ["--fork", "--pid", "--mount-proc", "--kill-child"]
    need_namespaces(*options)
    with wrapped("tests.service.handlers:LeavesOrphans", "unshare", *options).ready(1) as service:
        [first] = processes_below(service.processes[0].pid)
        for _ in range(3):
            assert service.call(x=1).status_code == 200
        eventually(lambda: len(processes_below(first)) == 2)
        os.kill(service.gateway, signal.SIGKILL)  # the supervisor must get its exit status, although it also reaps orphans
        eventually(lambda: service.log("gateway ended with status -9"))
        assert service.ready(1).call(x=1).status_code == 200
        eventually(lambda: not any(is_zombie(pid) for pid in processes_below(first)))
        os.kill(first, signal.SIGTERM)  # unshare passes no signal on
        assert service.processes[0].wait(20) == 0


def test_without_room_in_shared_memory_the_service_serves_and_says_so_once() -> None:
    need_namespaces("--mount")
    with wrapped(FAULTY, "unshare", "--mount", "sh", "-c", FULL, "sh").ready(1) as service:
        assert service.call(sleep=0).status_code == 200
        [line] = service.log("/dev/shm cannot be used: No space left on device")
        assert line["level"] == "warning"
        service.processes[0].terminate()
        assert service.processes[0].wait(20) == 0
        assert not [line for line in service.log() if "trace" in line]


@pytest.mark.parametrize("change", ["mount -t tmpfs -o ro tmpfs /dev/shm", "mount -t tmpfs tmpfs /dev"])
def test_if_shared_memory_is_lost_later_workers_are_replaced_and_no_call_is_lost(change: str) -> None:
    need_namespaces("--mount")
    with wrapped(FAULTY, "unshare", "--mount", "sh", "-c", 'exec "$@"', "sh").ready(2) as service:
        arbiter = service.arbiter
        running, computing = service.send_call_and_find_worker(sleep=2)
        subprocess.run(["nsenter", "--target", str(arbiter), "--mount", "sh", "-c", change], check=True)
        for _ in range(2):
            idle = next(pid for pid in service.workers if pid != computing)
            os.kill(idle, signal.SIGKILL)
            eventually(lambda: idle not in service.workers and len(service.workers) == 2)  # noqa: B023
        assert answer_of(running)[0] == 200
        service.ready(2)
        assert service.arbiter == arbiter
        assert len(service.log("/dev/shm cannot be used: ")) == 1
        assert not [line for line in service.log() if "trace" in line]


def test_a_worker_that_no_folder_has_room_for_is_started_later_with_the_umask_of_the_service() -> None:
    need_namespaces("--mount")
    cover = 'mount -t tmpfs -o ro tmpfs /dev/shm && mount -t tmpfs -o ro tmpfs "$PERCORE_STATE_DIR"'
    with wrapped(FAULTY, "unshare", "--mount").ready(2) as service:
        arbiter, message = service.arbiter, "a worker cannot be started: Read-only file system"
        umask = umask_of(arbiter)
        into = ["nsenter", "--target", str(arbiter), "--mount", "sh", "-c"]
        subprocess.run([*into, cover], check=True, env=service.environ)
        os.kill(service.workers[0], signal.SIGKILL)
        eventually(lambda: len(service.log(message)) >= 2)
        subprocess.run([*into, 'umount "$PERCORE_STATE_DIR" /dev/shm'], check=True, env=service.environ)
        service.ready(2)
        assert service.arbiter == arbiter
        assert [umask_of(pid) for pid in service.pids("worker")] == [umask] * 3


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_outputs_end_no_call_and_do_not_disturb_the_stop(closed: str) -> None:
    with wrapped(FAULTY, "sh", "-c", f'exec "$@" {closed}', "sh").ready(1) as service:
        assert service.call(sleep=0).status_code == 200
        service.processes[0].terminate()
        assert service.processes[0].wait(20) == 0
        written = service.log_path.read_text()
        assert not [line for line in written.splitlines() if "trace" in line or not line.startswith("{")]
