"""One machine without Kubernetes: a small process that starts the gateway and the arbiter of the workers.

It owns the listening sockets. So while the gateway is replaced, new callers are not refused: they wait. It restarts a child
that ends. On SIGTERM it ends the gateway first, and the gateway answers every call that it has taken. Then it ends the workers.
If it dies, the kernel tells both children to end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gunicorn.systemd import sd_notify

from percore import cores, logs, state_dir
from percore.errors import START_FAILED, StartError
from percore.http.front import BACKLOG, bind
from percore.parent_death import die_with_parent
from percore.settings import Settings
from percore.worker.restart_backoff import restart_delay

log = logging.getLogger("percore.supervisor")

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
EARLY_END_SECONDS = 10.0
MOST_CRASHES = 5
END_SECONDS = 5.0
FORCED_SECONDS = 0.5
STOP_SPARE_SECONDS = 60.0
"""How much longer than the shutdown timeout the whole stop may take."""


def listen(host: str, port: int, key: str) -> socket.socket:
    """Return a socket that listens; raise StartError if the address cannot be used."""
    listener = bind(host, port, key)
    listener.listen(BACKLOG)
    return listener


def lock_state_dir(folder: Path) -> state_dir.Lock:
    """Lock the state directory, so that no other service uses it. Return the lock: the process holds it until its end."""
    state_dir.ensure_owned(folder)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StartError(
            f"PERCORE_STATE_DIR={str(folder)!r}: must belong to the user that runs the service, "
            "and no other user may write to it"
        )
    lock = state_dir.Lock(folder / "supervisor.lock")
    if not lock.take():
        raise StartError(f"PERCORE_STATE_DIR={str(folder)!r}: another service runs there; give each its own")
    return lock


@dataclass(slots=True)
class Child:
    """A process that is kept running."""

    name: str
    arguments: tuple[str, ...]
    pass_fds: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    failures: int = 0
    always_ended_early: bool = True
    """Whether it has ended soon after each start so far."""
    started: float = 0.0
    due: float = field(default=0.0)

    def start(self) -> None:
        """Start it, in a session of its own, so that Ctrl-C reaches the supervisor alone."""
        parent = os.getpid()
        self.starts += 1
        self.process = subprocess.Popen(  # noqa: S603 - our own code, with our own arguments
            (sys.executable, "-P", "-m", "percore", *self.arguments),  # -P: do not import a percore.py of the user
            pass_fds=self.pass_fds,
            env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},  # Gunicorn would write to it
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - no other thread runs yet
        )
        self.started = time.monotonic()

    def _try_to_start(self, now: float) -> None:
        try:
            self.start()
        except OSError as error:  # no process or no memory left at present
            self.failures += 1
            self.due = now + restart_delay(self.failures)
            log.error("%s cannot be started: %s; it is tried again in %.1f s", self.name, error, self.due - now)  # noqa: TRY400

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it and its own children at once: Python's signal handlers do not run while a worker is inside TensorFlow."""
        if self.process is None or self.process.poll() is not None:
            return
        pid = self.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:  # this kernel does not list children
            children = []
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(child), signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return False if it does not end in time."""
        try:
            return self.process is None or self.process.wait(seconds) is not None
        except subprocess.TimeoutExpired:
            return False

    def reconcile(self, now: float) -> int | None:
        """Restart it if it died and the time for that has come; return its exit status if it cannot start at all."""
        if self.process is None:
            if now >= self.due:
                self._try_to_start(now)
            return None
        status = self.process.poll()
        if status is None:
            return None
        if status == START_FAILED and self.starts == 1:
            return status
        was_quick = now - self.started < EARLY_END_SECONDS
        self.failures = self.failures + 1 if was_quick else 0
        self.always_ended_early = self.always_ended_early and was_quick and status != -signal.SIGKILL
        if self.always_ended_early and self.starts >= MOST_CRASHES:
            log.critical("cannot start: %s ended %d times at its start, last with status %d", self.name, self.starts, status)
            return START_FAILED
        self.due, self.process = now + restart_delay(self.failures), None
        log.error("%s ended with status %d; it is started again in %.1f s", self.name, status, self.due - now)
        return self.reconcile(now)


class Supervisor:
    """Keeps both children running until a signal, or until one of them cannot start."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._deadline = math.inf
        self._is_forced = False
        self._lock = lock_state_dir(settings.server.state_dir)
        server = settings.server
        self._listeners = (
            listen(server.host, server.port, "PERCORE_PORT"),
            listen(server.host, server.status_port, "PERCORE_STATUS_PORT"),
        )
        fds = tuple(each.fileno() for each in self._listeners)
        number = ("--workers", str(workers))
        self._gateway = Child("gateway", ("gateway", *number, "--fd", *map(str, fds)), pass_fds=fds)
        self._arbiter = Child("arbiter", ("worker", *number))

    def run(self) -> int:
        """Run until a signal stops the service; return the exit status."""
        for each in (*STOPPING, signal.SIGCHLD):
            signal.signal(each, lambda number, _frame: self._signals.put(number))
        for each in (signal.SIGUSR1, signal.SIGUSR2):  # not SIG_IGN, which children would inherit
            signal.signal(each, lambda _number, _frame: None)
        children = (self._gateway, self._arbiter)
        while True:
            self._lock.keep()
            for child in children:
                status = child.reconcile(time.monotonic())
                if status is not None:
                    self._stop(seconds=END_SECONDS)
                    return status
            if self._next_signal(seconds=0.1 if any(child.process is None for child in children) else 60.0):
                self._stop(seconds=self._settings.limits.shutdown_timeout)
                return 0

    def _next_signal(self, seconds: float) -> bool:
        """Wait for a signal; return whether it was one that stops the service."""
        with contextlib.suppress(queue.Empty):
            number = self._signals.get(timeout=seconds)
            if number != signal.SIGCHLD:
                return True
            self._reap_orphans()
        return False

    def _reap_orphans(self) -> None:
        """Reap processes that handlers have left. The kernel gives them to this process if it is the first of its container.

        The gateway and the arbiter are left to their ``Popen``, which needs their exit status.
        """
        ours = {child.process.pid for child in (self._gateway, self._arbiter) if child.process is not None}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in ours:
                    break  # the next reconcile takes its status
                os.waitpid(ended.si_pid, 0)

    def _stop(self, seconds: float) -> None:
        """Have the gateway answer every call that it has taken, then end the workers. A second signal ends all at once."""
        log.info("stopping: calls have %g s to finish; a second signal ends them", seconds)
        # systemd's own TimeoutStopSec is short, because it is also the time that systemd waits after it has killed processes.
        sd_notify(f"EXTEND_TIMEOUT_USEC={(seconds + STOP_SPARE_SECONDS) * 1e6:.0f}", log)
        for listener in self._listeners:
            listener.close()
        self._deadline = time.monotonic() + seconds
        self._end(self._gateway)
        if not self._is_forced:
            self._deadline = max(self._deadline, time.monotonic() + END_SECONDS)
        self._end(self._arbiter)

    def _end(self, child: Child) -> None:
        """End a child gracefully. When the time is over, or at a second signal, end it at once."""
        child.send(signal.SIGTERM)
        while not child.wait(0) and time.monotonic() < self._deadline:
            if self._next_signal(seconds=0.2 if self._is_forced else 1.0):
                self._is_forced = True
                self._deadline = min(self._deadline, time.monotonic() + END_SECONDS)
                self._gateway.send(signal.SIGTERM)
                self._arbiter.send(signal.SIGQUIT)
        child.send(signal.SIGTERM)  # a second signal makes the gateway answer queued calls with 503
        child.wait(FORCED_SECONDS)
        child.kill()
        child.wait(END_SECONDS)


def run(settings: Settings) -> int:
    """Serve on this machine's cores until a signal stops the service; return the exit status."""
    logs.configure(settings.server.log_level)
    groups = cores.core_groups(cores.usable_cores(), settings.cores.per_call)
    return Supervisor(settings, len(groups)).run()
