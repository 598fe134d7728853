"""The arbiter: Gunicorn, configured from the settings.

Before it forks, it imports the modules that its workers need (``before_fork``). It loads no model and computes nothing: the
workers do so, after the fork.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

from gunicorn import sock
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer
from gunicorn.glogging import Logger

from percore import cores, logs, sockets, state_dir
from percore.errors import START_FAILED, LoadError, SettingsError, StartError
from percore.settings import LimitSettings, Settings
from percore.worker import before_fork
from percore.worker.call_worker import CallWorker, shut_down
from percore.worker.restart_backoff import RestartBackoff, restart_delay

log = logging.getLogger("percore.arbiter")

MARGIN_SECONDS = 30.0
QUIT_SECONDS = 2
"""How long workers have on SIGQUIT."""
KEEPALIVE = sockets.keepalive(idle=5, interval=3, count=3)
"""If a gateway or a client is lost without closing its connection, this is noticed within 14 s, so that it holds no worker.

``TCP_USER_TIMEOUT`` is not among them. Linux applies it also to a peer that lives but does not read, so it would cut the
connection of a slow reader of a large answer. ``PERCORE_ANSWER_TIMEOUT`` limits the time of an answer.
"""
MOST_DEATHS = 4
"""If no worker was ever ready, the service ends after this many deaths for each worker."""
OUT_OF_RESOURCES = (errno.EAGAIN, errno.ENOMEM)
"""Why a fork fails if the limit of processes or of memory is reached."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Gunicorn unlinks its files there at once


class JsonLogger(Logger):  # type: ignore[misc]
    """Gunicorn's log lines, in the format of all others."""

    def setup(self, cfg: Any) -> None:
        """Leave the handlers to ``percore.logs``."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.propagate = True
        self.error_log.setLevel(logging.NOTSET)


def gunicorn_timeout(limits: LimitSettings) -> int:
    """Return Gunicorn's ``timeout``. It is longer than any call may take, and ends a call if the watchdog cannot run."""
    return math.ceil(limits.body_timeout + limits.run_timeout + limits.answer_timeout + MARGIN_SECONDS)


def options(settings: Settings, workers: int | None) -> dict[str, Any]:
    """Return Gunicorn's settings.

    ``workers`` is the number of workers of one machine, each with a unix socket. None means a pod: one worker, on TCP.
    """
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    if workers is None:
        bind = [f"{host}:{server.port}"]
    else:
        bind = [f"unix:{server.worker_socket(number)}" for number in range(workers)]
    return {
        "bind": bind,
        "workers": len(bind),
        "worker_class": CallWorker,
        "preload_app": False,
        "timeout": gunicorn_timeout(settings.limits),
        "graceful_timeout": math.ceil(settings.limits.shutdown_timeout),
        "logger_class": JsonLogger,
        "control_socket_disable": True,
        "forwarder_headers": "",  # a proxy in front must not change the path or the scheme that a call sees
        "forwarded_allow_ips": "",
        "proc_name": "percore",
        "when_ready": _prepare,
    }


def _prepare(arbiter: CallArbiter) -> None:
    """Run after the sockets listen and before the first fork. Connections wait in the sockets meanwhile."""
    _keep_alive(arbiter)
    arbiter.import_before_fork()


def _keep_alive(arbiter: CallArbiter) -> None:
    """Set keepalives on the listeners. The kernel passes the options to each accepted connection."""
    for listener in arbiter.LISTENERS:
        if listener.sock.family != socket.AF_UNIX:
            sockets.set_options(listener.sock, KEEPALIVE)


class CallArbiter(Arbiter):  # type: ignore[misc]
    """Gunicorn's arbiter, with other rules for stopping.

    Gunicorn's own stops whenever a worker ends with status 3 or 4. But a handler that calls ``exit(3)`` must not end the
    service.
    """

    WORKER_BOOT_ERROR = APP_LOAD_ERROR = START_FAILED

    LISTENERS: list[Any]
    halting = False
    fork_failures = 0
    fork_due = 0.0
    heartbeat_folder = SHARED_MEMORY

    def import_before_fork(self) -> None:
        """Import the modules of the settings.

        A thread that a module starts cannot be ended. So if there is one, this process executes itself again, without the
        import. Then each worker imports for itself.
        """
        environ = dict(os.environ)
        names = before_fork.modules(self.app.settings)
        if not names:
            return
        try:
            threads = before_fork.import_modules(names, self.app.settings.limits.load_timeout)
        except LoadError as error:
            self.log.critical("cannot start: %s", error)
            self.log.debug("why it cannot start", exc_info=error.__cause__)
            os._exit(START_FAILED)  # do not wait for threads that a module has started
        if threads:
            self.log.warning(
                "not imported before the fork, because threads or processes run after the import: %s. Each worker imports for "
                "itself, which takes longer. The modules are %s; leave out the one that starts them, or set %s=no",
                *(", ".join(threads), ", ".join(names), before_fork.KEY),
            )
            sock.close_sockets(self.LISTENERS)
            # With the environment as it was, because variables that the modules set must not override those that a handler
            # sets.
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environ, before_fork.KEY: "no"})  # noqa: S606
        self.app.imported_before_fork = True

    def spawn_worker(self) -> None:
        """Fork a worker. If the system has no process, memory or descriptor left at present, it is tried again later."""
        if time.monotonic() < self.fork_due:
            return
        try:
            self.cfg.set("worker_tmp_dir", str(self._heartbeat_folder()))
            with _same_umask():
                super().spawn_worker()
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES and not self.app.backoff.ever_ready:
                # For example, there is no room for Gunicorn's file. Only the operator can correct this.
                reason = f"cannot start: a worker cannot be started: {error.strerror or error}"
                self.log.critical(reason)
                raise HaltServer(reason, START_FAILED) from error
            self.fork_failures += 1
            delay = restart_delay(self.fork_failures)
            self.fork_due = time.monotonic() + delay
            self.log.error(  # noqa: TRY400 - the message says everything
                "a worker cannot be started: %s; it is tried again in %.1f s", error.strerror or error, delay
            )
        else:
            self.fork_failures = 0

    def _heartbeat_folder(self) -> Path:
        """Return the folder for the file in which the next worker shows that it is alive. Raise OSError if there is no room.

        The file must not wait for a disk. So the folder is in memory, unless no file can be created there at present. If the
        folder does not exist, Gunicorn would end the arbiter.
        """
        folder, state = SHARED_MEMORY, self.app.settings.server.state_dir
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            tempfile.TemporaryFile(dir=state).close()
            folder = state
            if self.heartbeat_folder != folder:
                message = "%s cannot be used: %s. Heartbeats of workers are files in PERCORE_STATE_DIR"
                log.warning(message, SHARED_MEMORY, error.strerror or error)
        self.heartbeat_folder = folder
        return folder

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        """Stop with a reason. Workers that end during the stop do not change it."""
        self.halting = True
        super().halt(reason, exit_status)

    def _ignore(self, name: str) -> None:
        """Say that a signal does nothing. On it, Gunicorn would start a worker beside one that computes, or end one."""
        self.log.warning("%s does nothing here: restart percore to have new workers or new settings", name)

    handle_hup = partialmethod(_ignore, "SIGHUP")
    handle_ttin = partialmethod(_ignore, "SIGTTIN")
    handle_ttou = partialmethod(_ignore, "SIGTTOU")
    handle_usr2 = partialmethod(_ignore, "SIGUSR2")
    handle_winch = partialmethod(_ignore, "SIGWINCH")

    def reap_workers(self) -> None:
        """Take note of workers that ended. Stop only if a worker could not load and none was ever ready."""
        before = set(self.WORKERS)
        try:
            super().reap_workers()
        except HaltServer:
            if not self.app.backoff.ever_ready and not self.halting:
                raise
        ended = before - set(self.WORKERS)
        self.app.deaths += len(ended)
        if self.app.deaths >= MOST_DEATHS * self.app.cfg.workers and not self.app.backoff.ever_ready and not self.halting:
            reason = (
                f"cannot start: {self.app.deaths} workers ended while they loaded, and none was ever ready; see the lines above"
            )
            self.log.critical(reason)
            raise HaltServer(reason, START_FAILED)
        for group in ended:
            # A handler may have started processes. They would go on computing on the core that the next worker takes.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)

    def manage_workers(self) -> None:
        """Keep the workers' sockets, and the number of workers; called every second."""
        gone = [number for number, listener in enumerate(self.LISTENERS) if _is_gone(listener)]
        if [number for number in gone if self._listen_again(number)]:
            self.kill_workers(signal.SIGTERM)  # they end after their calls, and their successors have the new sockets
        super().manage_workers()

    def _listen_again(self, number: int) -> bool:
        """Create a socket again, because its file was removed; return whether that succeeded."""
        old = self.LISTENERS[number]
        try:
            state_dir.ensure_owned(Path(old.cfg_addr).parent)
            with _same_umask():
                self.LISTENERS[number] = type(old)(old.cfg_addr, self.cfg, self.log)
        except (StartError, OSError, ValueError) as error:
            self.log.warning("%s was removed, and cannot be created again: %s", old.cfg_addr, error)
            return False
        self.log.warning("%s was removed: it is created again, and the workers start again after their calls", old.cfg_addr)
        old.close()
        return True

    def stop(self, graceful: bool = True) -> None:
        """Stop. Close the sockets at once, so that gateways use other pods, and let running calls end."""
        if not graceful:
            self.cfg.set("graceful_timeout", QUIT_SECONDS)
        for listener in self.LISTENERS:
            shut_down(listener.sock)
        # Gunicorn removes the files. If one is gone already, it fails in the middle of the stop.
        self.LISTENERS = [each for each in self.LISTENERS if not _is_gone(each)]
        super().stop(graceful)


@contextlib.contextmanager
def _same_umask() -> Iterator[None]:
    """Keep the umask of this process. Gunicorn leaves it at 0 if it fails to create a file or a socket."""
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        yield
    finally:
        os.umask(umask)


def _is_gone(listener: Any) -> bool:
    """Touch the file of a worker's socket, so that no cleaner removes it. Return whether the file is gone."""
    return listener.sock.family == socket.AF_UNIX and not state_dir.touch(Path(listener.cfg_addr))


class GunicornApp(BaseApplication):  # type: ignore[misc]
    """Gunicorn's application object: the workers take the settings and the groups of cores from it."""

    def __init__(self, settings: Settings, workers: int | None) -> None:
        self.settings = settings
        self.workers = workers
        self.pins_cores = workers is not None
        """Whether workers pin themselves to their cores. In a pod, the kubelet pins the worker."""
        groups = cores.core_groups(cores.usable_cores(), settings.cores.per_call)
        if workers is not None and workers > len(groups):
            raise SettingsError(f"--workers {workers}: must be at most {len(groups)}, the number of groups of cores here")
        self.groups = groups[: workers or 1]
        self.backoff = RestartBackoff(len(self.groups))
        self.deaths = 0
        """How many workers ended. The number matters only until the first worker is ready."""
        self.imported_before_fork = False
        """Whether the modules were imported before the fork."""
        super().__init__()

    def load_config(self) -> None:
        """Hand the options to Gunicorn."""
        for name, value in options(self.settings, self.workers).items():
            self.cfg.set(name, value)

    def run(self) -> None:
        """Run the arbiter."""
        CallArbiter(self).run()


def serve(settings: Settings, workers: int | None = None) -> None:
    """Run the arbiter until a signal stops it; never returns. ``workers``: see ``options``."""
    logs.configure(settings.server.log_level)
    _check_environment()
    state_dir.ensure_owned(settings.server.state_dir)
    for number in range(workers or 0):
        _check_free(settings.server.worker_socket(number))
    GunicornApp(settings, workers).run()


def _check_environment() -> None:
    """Raise StartError if Gunicorn would fail because of its own environment variable."""
    value = os.environ.get("FORWARDED_ALLOW_IPS", "")
    try:
        for each in filter(None, (part.strip() for part in value.split(","))):
            if each != "*":
                ipaddress.ip_network(each)
    except ValueError:
        raise StartError(
            f"FORWARDED_ALLOW_IPS={value!r}: must be `*`, or addresses and networks with commas between them"
        ) from None


def _check_free(path: Path) -> None:
    """Raise StartError unless the socket of a worker can be created here. A file that an earlier process left is removed."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            pass
        except OSError as error:
            raise StartError(f"{path}: cannot be a socket of a worker: {error.strerror or error}") from error
        else:
            if _is_listened_to(probe):
                raise StartError(f"{path}: another service has workers there; set another PERCORE_STATE_DIR")
    state_dir.clear_socket(path)
    with (
        state_dir.os_errors_as_start_errors(path),
        socket.socket(socket.AF_UNIX) as trial,
    ):  # Gunicorn itself would retry a failed bind
        trial.bind(str(path))
        path.unlink()


def _is_listened_to(probe: socket.socket) -> bool:
    """Return whether the arbiter that listens at the other end is alive.

    If the arbiter was killed, a worker may still have the socket open. The worker closes it at once, unless native code keeps
    Python's global lock.
    """
    try:
        arbiter, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        os.kill(arbiter, 0)  # if the arbiter is in another container, its pid is 0 here, and this succeeds
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user, or this kernel does not tell
        pass
    return True
