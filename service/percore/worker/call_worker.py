"""The worker: a plain Gunicorn sync worker. It accepts a connection only when it is free.

Its listening socket belongs to the arbiter and stays open while the worker computes, loads or is replaced. Connections wait in
the kernel's accept queue, first come, first served. So a gateway does not have to poll the worker, and no connection is
refused. On one machine each group of cores has a socket of its own: a worker serves the socket of the cores that it holds.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn, cast

from gunicorn.workers.sync import SyncWorker

from percore import cores
from percore.errors import START_FAILED, LoadError, StartError
from percore.model_metadata import Catalog, ModelInfo
from percore.parent_death import die_with_parent
from percore.settings import Settings
from percore.worker import before_fork
from percore.worker.answer import wait_for_helpers
from percore.worker.exchange import Application, Exchange, WorkerContext
from percore.worker.report import Reporter
from percore.worker.user_app import APP, UserApp
from percore.worker.watchdog import Deadline, Watchdog

EXIT_SECONDS = 3.0
LOAD_FAILED = 1
LOCAL = ("127.0.0.1", 0)
"""Stands for the address of a peer on a unix socket, which has no address."""


def shut_down(listener: socket.socket) -> None:
    """Stop listening in every process that has the socket; ``close`` would not do that.

    Connections that were not accepted are reset.
    """
    with contextlib.suppress(OSError):  # if the kernel lacks this option, assume that the socket listens
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RD)


class CallWorker(SyncWorker):  # type: ignore[misc]
    """A Gunicorn sync worker whose models are loaded and called in its main thread, one connection at a time."""

    sockets: list[Any]
    settings: Settings
    context: WorkerContext
    wsgi: Application
    claim: cores.Claim | None = None
    client: socket.socket | None = None
    lost_cores = False
    """Whether another worker has the same cores."""

    def init_process(self) -> None:
        """Set up the parts that exist once for each process, then load and run as Gunicorn does."""
        die_with_parent(self.ppid)
        os.setpgid(0, 0)  # processes that a handler starts are in this group, and end with it
        self.settings = self.app.settings
        self.reporter = Reporter(self.settings.server.report_socket)
        self.watchdog = Watchdog(on_tick=self.tick)
        os.register_at_fork(after_in_child=self._close_inherited)
        super().init_process()

    def _close_inherited(self) -> None:
        """In a process that a handler forks: close the worker's lock and connections, and restore the usual signals."""
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if getattr(signal.getsignal(number), "__self__", None) is self:
                signal.signal(number, signal.SIG_DFL)
        if self.claim is not None:
            self.claim.lock.close()
        self.reporter.close()
        for each in (*self.sockets, self.client):
            if each is not None:
                each.close()

    def load_wsgi(self) -> None:
        """Claim cores, then load the models: after the fork, in the thread that will call them."""
        time.sleep(self.app.backoff.begin())
        try:
            self.claim = cores.claim(self.settings.server.state_dir, self.app.groups)
        except StartError as error:
            self._fail(error)
        self._listen_at(self.app.groups.index(self.claim.cores))
        if self.app.pins_cores:
            cores.pin(self.claim.cores)
        self.reporter.reconnect()
        self.watchdog.start()
        self.watchdog.arm(Deadline(self.settings.limits.load_timeout, on_expired=self._load_expired))
        began = time.monotonic()
        try:
            catalog = self._load(threads=len(self.claim.cores))
        except LoadError as error:
            self._fail(error)
        self.watchdog.disarm()
        self.context.load_seconds = time.monotonic() - began
        self.reporter.loaded(catalog.document())
        self.app.backoff.succeed()
        self.log.info("ready after %.1f s, %d threads a call", self.context.load_seconds, len(self.claim.cores))

    def _listen_at(self, index: int) -> None:
        """Accept from the socket of this worker's cores alone."""
        for number, listener in enumerate(self.sockets):
            if number != index:
                listener.sock.close()
        self.sockets = [self.sockets[index]]
        self.wait_fds = [self.sockets[0], self.PIPE[0]]

    def _load(self, threads: int) -> Catalog:
        # Numpy, scikit-learn and others read these when they are imported. Without them they use every core of the node.
        for name in before_fork.THREAD_SETTINGS:
            os.environ.setdefault(name, str(threads))
        if self.app.imported_before_fork:
            before_fork.set_up_forked_worker(threads)
        catalog = self._load_app() if self.settings.app.target else self._load_models(threads)
        server = self.settings.server
        has_app = bool(self.settings.app.target)
        self.context = WorkerContext(
            application=self.wsgi,
            config=self.cfg,
            limits=self.settings.limits,
            watchdog=self.watchdog,
            reporter=self.reporter,
            server=(server.host, server.port) if has_app else self.sockets[0].getsockname(),
            load_seconds=0.0,
            timed_out=lambda: bool(self.aborted),
            user_app=UserApp() if has_app else None,
        )
        return catalog

    def _load_models(self, threads: int) -> Catalog:
        # These imports take seconds, unless the arbiter imported the modules before the fork.
        from percore.api.app import create_app  # noqa: PLC0415
        from percore.model_store import load_models  # noqa: PLC0415

        models = load_models(self.settings, threads)
        catalog = Catalog(tuple(model.info for model in models))
        for info in catalog:
            self.log.info("model %r version %d is loaded, digest %s", info.name, info.version, info.digest or "not known")
        app = create_app(models, catalog, max_body_bytes=self.settings.limits.max_body_bytes)
        self.wsgi = cast("Application", app.wsgi_app)
        return catalog

    def _load_app(self) -> Catalog:
        from percore.handlers import wsgi  # noqa: PLC0415

        began = time.monotonic()
        self.wsgi = wsgi.load(self.settings.app.target)
        seconds = round(time.monotonic() - began, 3)
        return Catalog((ModelInfo(APP, 1, "wsgi_app", {}, load_seconds=seconds),))

    def _load_expired(self) -> None:
        what = "app was" if self.settings.app.target else "models were"
        self.log.critical(before_fork.LOAD_EXPIRED, what, self.settings.limits.load_timeout)
        self._end_unloaded()

    def _fail(self, error: StartError) -> NoReturn:
        self.log.critical("cannot start: %s", error)
        self.log.debug("why it cannot start", exc_info=error.__cause__)
        self._end_unloaded()

    def _end_unloaded(self) -> NoReturn:
        """End the service if it was never ready, and otherwise only this worker."""
        self.reporter.count_event("ending", reason="crashed")
        os._exit(LOAD_FAILED if self.app.backoff.ever_ready else START_FAILED)

    def accept(self, listener: Any) -> None:
        """Serve the connection that has waited longest. If the arbiter has shut the listener down, end."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.alive = False
            return
        self.handle(listener, client, address)

    def handle(self, _listener: Any, client: socket.socket, address: Any) -> None:
        """Serve one connection."""
        self.client = client
        Exchange(self.context, client, address or LOCAL).serve()
        self.client = None

    def tick(self) -> None:
        """Run the regular checks, ten times a second, also while a call computes. The watchdog's thread calls it.

        If the arbiter has died, the worker closes its socket at once, because no worker would serve the connections that wait.
        If a signal comes while the worker loads, it ends at once here, because Python runs no signal handler inside TensorFlow.
        """
        self.reporter.reconnect()
        self._keep_cores()
        if not self.booted and self._is_told_to_end():
            self.reporter.count_event("ending", reason="stopped")
            os._exit(0)
        if os.getppid() != self.ppid:
            for listener in self.sockets:
                shut_down(listener.sock)

    def _keep_cores(self) -> None:
        """Keep the lock of the cores. If its file was removed and another worker has the cores now, end after this call."""
        if self.claim is not None and not self.lost_cores and not self.claim.lock.keep():
            self.lost_cores = True
            self.log.error("the lock of the cores %s was removed, and another worker has them: this one ends", self.claim.cores)
            os.kill(os.getpid(), signal.SIGTERM)

    def _is_told_to_end(self) -> bool:
        """Read the numbers of signals that have come, which the interpreter writes to Gunicorn's pipe at once."""
        waiting = select.poll()
        waiting.register(self.PIPE[0], select.POLLIN)
        return bool(waiting.poll(0)) and not before_fork.END_SIGNALS.isdisjoint(os.read(self.PIPE[0], 4096))

    def run(self) -> None:
        """Serve until a signal stops the worker; then wait for the helper threads that still close connections."""
        super().run()
        reason = "stopped" if os.getppid() == self.ppid else "arbiter-lost"
        self.reporter.count_event("ending", reason=reason)
        wait_for_helpers(EXIT_SECONDS)
        self._run_exit_functions()
        # Python's normal exit would wait for every thread that a handler left behind.
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it was closed when the process started
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if reason == "arbiter-lost":
            os.killpg(0, signal.SIGKILL)  # processes that a handler started: no arbiter is left to end them
        os._exit(0)

    def _run_exit_functions(self) -> None:
        """Run the functions that a handler or an app has registered with ``atexit``, for a few seconds at most."""
        self.watchdog.arm(Deadline(EXIT_SECONDS, on_expired=lambda: os._exit(0)))
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        self.watchdog.disarm()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """On SIGTERM finish the running call; while loading there is none, so end at once."""
        if not self.booted:
            self.reporter.count_event("ending", reason="stopped")
            os._exit(0)
        super().handle_exit(sig, frame)

    def handle_quit(self, _sig: int, _frame: Any) -> None:
        """On SIGQUIT or SIGINT end at once. The connection of a running call closes without an answer, so the call is lost."""
        self.reporter.count_event("ending", reason="stopped")
        os._exit(0)

    def handle_abort(self, _sig: int, _frame: Any) -> None:
        """On SIGABRT, which the arbiter sends if the watchdog cannot run: answer the call 504, and end the worker."""
        self.alive = False
        self.aborted = True
        sys.exit(1)
