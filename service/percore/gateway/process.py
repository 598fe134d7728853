"""The gateway's process: starts the gateway's parts in order, and ends them in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from prometheus_client import disable_created_metrics

from percore import __version__, logs, state_dir
from percore.api.reads import Reads
from percore.errors import START_FAILED, NotReady, StartError
from percore.gateway.allocator import keep_freed_memory
from percore.gateway.call import Call
from percore.gateway.catalogs import PodCatalogs
from percore.gateway.cost_writer import CostWriter, PodCosts
from percore.gateway.dispatch import Dispatcher
from percore.gateway.endpoints import Endpoint, Endpoints, EndpointsFile, Fixed, Source
from percore.gateway.gateway_metrics import GatewayMetrics
from percore.gateway.gateway_settings import Settings
from percore.gateway.intake import Intake, IntakeLimits, Router
from percore.gateway.lag import LoopLag
from percore.gateway.pods import PodState
from percore.gateway.queue import CallQueue
from percore.gateway.spool import Spool, SpoolLimits
from percore.http.front import Front, FrontLimits, bind
from percore.http.status import StatusServer
from percore.model_metadata import Catalog
from percore.status import worker_status
from percore.status.event_receiver import EventReceiver
from percore.status.workers import Workers
from percore.threads import start_vital
from percore.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from percore.gateway.store.store import Store

log = logging.getLogger("percore.gateway")

SPARE_DESCRIPTORS = 1024
"""Open files for connections to pods, and for everything else."""
BACKSTOP_SECONDS = 60.0
"""How long the gateway waits for a run after the time at which the worker should have ended it."""
STUCK_SECONDS = 60.0
"""A restart loses the queue, so ``/livez`` fails only if the event loop has not run for this long."""
STEP_SECONDS = 0.05
SWITCH_SECONDS = 0.001
"""After this time other threads (metrics, endpoints) must let the event loop run."""


class Gateway:
    """All parts of the gateway that run on the event loop."""

    def __init__(
        self,
        settings: Settings,
        metrics: GatewayMetrics,
        writer: logs.BackgroundWriter,
        catalog: Callable[[], Catalog | None] | None = None,
        workers_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """``catalog`` returns the served models. Without it, the gateway asks the status servers of the pods.

        ``workers_end`` is called while the gateway stops. If it returns True, the workers end too, so no queued call can run.
        """
        self._workers_end = workers_end
        limits, gateway = settings.limits, settings.gateway
        loop = asyncio.get_running_loop()
        self.metrics = metrics
        self.settings = settings
        self.queue: CallQueue[Call] = CallQueue()
        folder = settings.server.state_dir if gateway.spool_dir == Path() else gateway.spool_dir
        spool_limits = SpoolLimits(
            memory=gateway.spool_memory_bytes,
            disk=gateway.spool_bytes,
            body_bytes=limits.max_body_bytes,
            body_seconds=limits.body_timeout,
            uploads=gateway.uploads,
            upload_bytes=gateway.upload_bytes,
        )
        self.spool = Spool(folder, spool_limits)
        run_seconds = limits.body_timeout + limits.run_timeout + BACKSTOP_SECONDS
        self.name = name = gateway.name or socket.gethostname()
        self.dispatcher = Dispatcher(
            self.queue, self.spool, name, run_seconds, limits.answer_timeout, requeued=metrics.requeued.inc
        )
        self.intake_limits = intake_limits = IntakeLimits(
            queue_length=limits.queue_length,
            queue_seconds=limits.queue_timeout,
            priority_header=gateway.priority_header.lower().encode(),
            caller_header=gateway.caller_header.lower().encode(),
        )
        self.intake = Intake(intake_limits, self.spool, self.queue, self.dispatcher, metrics, writer.write_call)
        self.write_line = writer.write_call
        self.connections = limits.queue_length + gateway.uploads + gateway.connections
        front_limits = FrontLimits(self.connections, idle_seconds=gateway.idle_timeout, answer_seconds=limits.answer_timeout)
        self._catalogs: PodCatalogs | None = None
        if catalog is None:
            self._catalogs = PodCatalogs()
            catalog = self._catalogs.current
        self._catalog = catalog
        reads = None if settings.app.target else Reads(catalog, ready=lambda: not self.why_not_ready())
        self.router = Router(self.intake, self.why_not_ready, gateway.health_paths, reads)
        self.front = Front(loop, self.router.serve, front_limits, refused=self.intake.refused)
        self.store: Store | None = None
        """The store of calls; None if calls are not stored."""
        self.lag = LoopLag(loop)
        self.endpoints: dict[str, Endpoint] = {}
        self._known = asyncio.Event()
        self._stopping = False
        metrics.lag.set_function(self.lag.longest)
        metrics.build_info.labels(__version__).set(1)
        metrics.connections_limit.set(self.connections)
        metrics.spool_limit.labels("memory").set(gateway.spool_memory_bytes)
        metrics.spool_limit.labels("disk").set(gateway.spool_bytes)

    def add_store(self, store: Store) -> None:
        """Add the store and its routes. Without it, no call is stored."""
        self.store = store
        self.router.stored = store.routes

    def publish(self, endpoints: Endpoints) -> None:
        """Replace the list of pods. Call it on the event loop."""
        self.endpoints = {each.pod: each for each in endpoints if each.pod}
        self.dispatcher.publish(endpoints)
        if self._catalogs is not None:
            self._catalogs.publish(endpoints)
        self._known.set()

    def why_not_ready(self) -> str:
        """Return the reason why this gateway is not ready; empty if it is ready.

        A gateway without pods is ready, because calls are queued and pods are started for them. On one machine it is not ready
        until a worker has loaded for the first time, because perhaps none ever will.
        """
        if self._stopping:
            return "the gateway is stopping"
        if not self._known.is_set():
            return "the pods are not known yet"
        return "no worker has loaded yet" if self._catalogs is None and self._catalog() is None else ""

    def running_pods(self) -> list[str]:
        """Return the names of the pods on which calls of this gateway run; may be called from any thread."""
        pods = list(self.dispatcher.pods.values())
        return [pod.endpoint.pod for pod in pods if pod.endpoint.pod and pod.task is not None and _holds_call(pod.state)]

    def set_gauges(self) -> None:
        """Set the gauges; may be called from any thread."""
        to = self.metrics
        executing, queued = self.dispatcher.running, len(self.queue)
        if self.store is not None:
            queued += self.store.waiting_for_lost_pod
        to.in_flight.labels("executing").set(executing)
        to.in_flight.labels("queued").set(queued)
        to.in_flight_calls.set(executing + queued)
        states = Counter(pod.state for pod in list(self.dispatcher.pods.values()))
        for state in PodState:
            to.pods.labels(state.value).set(states[state])
        to.spool.labels("memory").set(self.spool.memory)
        to.spool.labels("disk").set(self.spool.disk)
        to.connections.set(self.front.connections)
        to.uploads.set(self.spool.uploads.count)

    async def run(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set. Then accept no new calls, and wait until every accepted call has ended."""
        self.lag.start()
        tasks = [self._catalogs.follow()] if self._catalogs is not None else []
        tasks += self.store.tasks() if self.store is not None else []
        follows = [asyncio.get_running_loop().create_task(each) for each in tasks]
        for task in follows:
            task.add_done_callback(_end_process_on_failure)
        await self.front.listen(listener)
        log.info("gateway listens on %s:%d", self.settings.server.host, self.settings.server.port)
        await stop.wait()
        await self._stop(stop)
        for task in follows:
            task.cancel()
        if follows:  # the sender of webhooks finishes its running attempts
            await asyncio.wait(follows)
        if self.store is not None:
            await self.store.close()

    async def _stop(self, stop: asyncio.Event) -> None:
        delay = self.settings.gateway.shutdown_delay
        self._stopping = True
        self.front.stopping = True
        stop.clear()
        log.info("stopping: no new calls after %g s; a second signal ends all calls", delay)
        loop = asyncio.get_running_loop()
        closes = loop.time() + delay
        while loop.time() < closes and not stop.is_set():
            await asyncio.sleep(STEP_SECONDS)
        self.intake.stopping = True
        self.front.close_listener()
        if self.store is not None:
            self.store.stop()
        while (self.intake.open_calls or self.front.busy or (self.store is not None and self.store.busy)) and not stop.is_set():
            if self._workers_end():
                self._reject_queued()
            await asyncio.sleep(STEP_SECONDS)
        self._reject_queued()
        await asyncio.sleep(STEP_SECONDS)  # the rejected calls are answered in this time
        self.front.close_connections()

    def _reject_queued(self) -> None:
        while (call := self.queue.pop()) is not None:
            call.fail(NotReady("the service is stopping; send the call again"))
        self.dispatcher.queue_shrank()


def _end_process_on_failure(task: asyncio.Task[None]) -> None:
    """End the process if this task failed, because the gateway cannot work without it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        if isinstance(error, StartError):
            log.critical("%s", error)
            logs.end_process(START_FAILED)
        log.error("a task of the gateway failed; the gateway ends", exc_info=error)
        logs.end_process(1)


def _open_store(gateway: Gateway, *, on_machine: bool) -> None:
    if not gateway.settings.gateway.calls_enabled:
        return
    from percore.gateway.store.store import open_store  # noqa: PLC0415 - SQLAlchemy takes 20 MB

    store = open_store(gateway, on_machine=on_machine)
    if store is not None:
        gateway.add_store(store)


def _holds_call(state: PodState) -> bool:
    return state in (PodState.RUNNING, PodState.ENDING)


@dataclass(frozen=True, slots=True)
class Machine:
    """The arguments from the supervisor on one machine: the number of workers, and sockets that outlive the gateway."""

    workers: int
    listener: int
    """File descriptor of the socket for calls."""
    status_listener: int
    """File descriptor of the socket for probes and metrics."""


def serve(settings: Settings, machine: Machine | None = None) -> int:
    """Run the gateway until a signal stops it; return the exit status."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter has a second series, which nothing reads
    metrics = GatewayMetrics()
    writer = logs.configure_background(settings.server.log_level, metrics.lines_lost.inc)
    try:
        return _serve(settings, machine, metrics, writer)
    finally:
        writer.close()


def _serve(settings: Settings, machine: Machine | None, metrics: GatewayMetrics, writer: logs.BackgroundWriter) -> int:
    keep_freed_memory()
    _raise_open_files_limit(settings)
    if settings.gateway.spool_dir == Path():
        state_dir.ensure_owned(settings.server.state_dir)
    else:
        state_dir.make(settings.gateway.spool_dir, "PERCORE_GATEWAY_SPOOL_DIR")
    if machine is None:
        host = settings.server.host
        listener = bind(host, settings.server.port, "PERCORE_PORT")
        status_listener = bind(host, settings.server.status_port, "PERCORE_STATUS_PORT")
    else:
        listener, status_listener = socket.socket(fileno=machine.listener), socket.socket(fileno=machine.status_listener)
    sources = _sources(settings, metrics, machine)
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_main(settings, metrics, writer, sources, listener, status_listener))
    return 0


async def _main(
    settings: Settings,
    metrics: GatewayMetrics,
    writer: logs.BackgroundWriter,
    sources: Sources,
    listener: socket.socket,
    status_listener: socket.socket,
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    workers = sources.workers
    if workers is None:
        gateway = Gateway(settings, metrics, writer)
    else:
        supervisor = os.getppid()
        # Another parent means that the supervisor was killed. Then the kernel ends the workers too. A supervisor that stops
        # normally ends the gateway before the workers.
        gateway = Gateway(settings, metrics, writer, workers.catalog, lambda: os.getppid() != supervisor)
    _open_store(gateway, on_machine=workers is not None)
    _status_server(gateway, workers).start(status_listener)
    start_vital("endpoints", sources.endpoints.follow, lambda endpoints: loop.call_soon_threadsafe(gateway.publish, endpoints))
    if sources.costs is not None:
        costs = CostWriter(sources.costs, gateway.running_pods, lambda: gateway.endpoints, metrics)
        start_vital("costs", costs.reconcile_forever)
    gc.collect()
    gc.freeze()
    await gateway.run(listener, stop)


def _status_server(gateway: Gateway, workers: Workers | None) -> StatusServer:
    """Return the status server. On one machine it also shows the status of the workers."""

    def livez() -> str:
        stuck = time.monotonic() - gateway.lag.ticked > STUCK_SECONDS
        return f"the event loop has not run for {STUCK_SECONDS:g} s" if stuck else ""

    registry = gateway.metrics.registry
    store = gateway.store
    lists = {store.base: store.routes.listing} if store is not None else {}
    if workers is None:
        return StatusServer(registry, gateway.set_gauges, {"/livez": livez, "/readyz": gateway.why_not_ready}, lists=lists)

    def set_gauges() -> None:
        gateway.set_gauges()
        worker_status.set_gauges(workers)

    probes = {"/livez": livez, "/readyz": lambda: gateway.why_not_ready() or worker_status.why_no_worker(workers)}
    return StatusServer(registry, set_gauges, probes, worker_status.documents(workers), lists)


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the gateway's information."""

    endpoints: Source
    costs: PodCosts | None = None
    """Reads and writes deletion costs; None if there are none."""
    workers: Workers | None = None
    """The workers of this machine, which report to this process. None on a cluster."""


def _sources(settings: Settings, metrics: GatewayMetrics, machine: Machine | None) -> Sources:
    """Return the sources that the settings name."""
    gateway = settings.gateway
    if machine is not None:
        paths = (str(settings.server.worker_socket(number)) for number in range(machine.workers))
        endpoints = tuple(Endpoint(path, 0, 0, pod=f"worker-{number}") for number, path in enumerate(paths))
        workers = Workers(WorkerMetrics(metrics.registry, versioned=False))
        EventReceiver(settings.server.report_socket, workers).start()
        return Sources(Fixed(endpoints), workers=workers)
    if not gateway.service:
        return Sources(Fixed(gateway.endpoints) if gateway.endpoints_file == Path() else EndpointsFile(gateway.endpoints_file))
    # Imported here, because without Kubernetes its client need not be installed.
    from percore.gateway.cluster import Cluster  # noqa: PLC0415

    cluster = Cluster(gateway)
    metrics.endpoints_age.set_function(cluster.endpoints_age)
    return Sources(cluster, cluster if gateway.deletion_costs == "yes" else None)


def _raise_open_files_limit(settings: Settings) -> None:
    """Set the limit of open files to its maximum; raise StartError if the maximum is too low."""
    gateway, queue = settings.gateway, settings.limits.queue_length
    # Each queued call and each upload needs a connection, and perhaps a file.
    needed = 2 * (queue + gateway.uploads) + gateway.connections + SPARE_DESCRIPTORS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise StartError(
            f"PERCORE_QUEUE_LENGTH={queue} PERCORE_GATEWAY_CONNECTIONS={gateway.connections}: need {needed} open files, "
            f"and this process may open {most}"
        )
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:
        log.warning("the limit of open files stays as it is: %s", error)
