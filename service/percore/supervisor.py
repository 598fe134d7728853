"""One machine without Kubernetes: one small process over the arbiter and the exporter.

It owns the listening socket, so that calls that wait survive a crash of the arbiter; it restarts what dies, and when told to
stop it ends both in order. A child never outlives it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from percore import cores, logs, rundir
from percore.errors import START_FAILED, NotReady, StartError
from percore.orphans import die_with_parent
from percore.settings import Settings
from percore.worker.boots import restart_delay

log = logging.getLogger("percore.supervisor")

QUICK_SECONDS = 10.0
GOODBYE_SECONDS = 5.0


def listen(settings: Settings) -> socket.socket:
    """Return the socket that all workers accept from; raise StartError where the address cannot be had."""
    host, port = settings.server.host, settings.server.port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A connection that says nothing stays in the kernel; it never gets as far as a worker.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, int(settings.limits.body) or 1)
    try:
        listener.bind((host, port))
        listener.listen(settings.limits.backlog)
    except OSError as error:
        raise StartError(f"PERCORE_HOST={host!r} PERCORE_PORT={port}: cannot listen there: {error.strerror}") from error
    return listener


def own_run_dir(folder: Path) -> int:
    """Make the run folder this service's own and return the lock that says so, held until the process ends."""
    rundir.make(folder)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StartError(f"PERCORE_RUN_DIR={str(folder)!r}: must belong to the user that runs the service, and to nobody else")
    lock = os.open(folder / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"PERCORE_RUN_DIR={str(folder)!r}: another service runs there; give each its own") from None
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
    started: float = 0.0
    due: float = field(default=0.0)

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is the supervisor's to handle."""
        parent = os.getpid()
        self.starts += 1
        self.process = subprocess.Popen(  # noqa: S603 - our own code, with our own arguments
            (sys.executable, "-m", "percore", *self.arguments),
            pass_fds=self.pass_fds,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - no other thread runs yet
        )
        self.started = time.monotonic()

    def tell(self, sent: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(sent)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return False if that does not come in time."""
        try:
            return self.process is None or self.process.wait(seconds) is not None
        except subprocess.TimeoutExpired:
            return False

    def look(self, now: float) -> int | None:
        """Restart it if it died and the time for that has come; return its exit status if it cannot start at all."""
        if self.process is None:
            if now >= self.due:
                self.start()
            return None
        status = self.process.poll()
        if status is None:
            return None
        if status == START_FAILED and self.starts == 1:
            return status
        self.failures = self.failures + 1 if now - self.started < QUICK_SECONDS else 0
        self.due, self.process = now + restart_delay(self.failures), None
        log.error("%s ended with status %d; it is started again in %.1f s", self.name, status, self.due - now)
        return self.look(now)


class Supervisor:
    """Keeps both children running until a signal, or until one of them cannot start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._lock = own_run_dir(settings.server.run_dir)
        self._listener = listen(settings)
        fd = self._listener.fileno()
        self._exporter = Child("exporter", ("exporter",))
        self._arbiter = Child("arbiter", ("worker", "--fd", str(fd)), pass_fds=(fd,))

    def run(self) -> int:
        """Run until told to stop; return the exit status."""
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(each, lambda number, _frame: self._signals.put(number))
        while True:
            for child in (self._exporter, self._arbiter):
                if child.look(time.monotonic()) is not None:
                    self._stop()
                    return 1
            if self._next_signal(seconds=0.1 if None in (self._exporter.process, self._arbiter.process) else 60.0):
                self._stop()
                return 0

    def _next_signal(self, seconds: float) -> bool:
        """Wait for a signal; tell whether it was one that stops."""
        with contextlib.suppress(queue.Empty):
            return self._signals.get(timeout=seconds) != signal.SIGCHLD
        return False

    def _stop(self) -> None:
        """Let running calls finish, tell waiting ones to come again, then end everything."""
        from percore.worker import answer  # noqa: PLC0415 - Gunicorn's modules, needed only now

        drain = self._settings.limits.drain
        log.info("stopping: running calls have %g s to finish; a second signal ends them", drain)
        self._arbiter.tell(signal.SIGTERM)
        threading.Thread(target=self._refuse_waiting, daemon=True).start()
        ends = time.monotonic() + drain + GOODBYE_SECONDS
        while not self._arbiter.wait(0) and time.monotonic() < ends:
            if self._next_signal(seconds=1.0):
                self._arbiter.tell(signal.SIGQUIT)
        self._arbiter.tell(signal.SIGKILL)
        self._exporter.tell(signal.SIGTERM)
        answer.wait_for_helpers(GOODBYE_SECONDS)
        if not self._exporter.wait(GOODBYE_SECONDS):
            self._exporter.tell(signal.SIGKILL)

    def _refuse_waiting(self) -> None:
        from percore.worker import answer  # noqa: PLC0415 - as above

        # Polled, and left non-blocking: the flag is shared with the workers, who must not block in accept.
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        while True:
            waiting.poll()
            with contextlib.suppress(OSError):
                answer.turn_away(self._listener.accept()[0], NotReady("the service is stopping"))


def run(settings: Settings) -> int:
    """Serve on this machine's cores until told to stop; return the exit status."""
    logs.configure(settings.server.log_level)
    cores.deal(cores.usable_cores(), settings.cores.per_call)  # a wrong number is said once, not by a child in a loop
    return Supervisor(settings).run()
