"""The dispatcher: binds the next call to a pod that has said that it is free.

Each pod that is tried is one coroutine: reserve, take the head of the queue, send, pass the answer on. A reservation is a
connection on which the worker has answered. So a call is bound late, and no pod is asked again and again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from percore.errors import CallError, GatewayFailed, PodLost, QueueTimeout, RunTimeout
from percore.gateway.call import Call, CallState
from percore.gateway.endpoints import Endpoint
from percore.gateway.pods import LONGEST_BACKOFF_SECONDS, Key, Pod, PodState, is_usable, key_of
from percore.gateway.queue import CallQueue
from percore.gateway.relay import relay
from percore.gateway.spool import SMALL_BYTES, Spool
from percore.gateway.upstream import TooLate, WorkerConnection, connect
from percore.http.request import HOP_BY_HOP, OWN_PREFIX, Disconnected, connection_tokens

log = logging.getLogger("percore.gateway")

PATIENCE_SECONDS = 0.002
"""How long reservations may stay unanswered before twice as many pods are tried."""
MOST_BROKEN_SENDS = 10
"""If so many workers end while they receive the same call, the call probably ends them, and is answered 502."""
NOT_FORWARDED = HOP_BY_HOP | {b"content-length", b"expect", b"x-request-id"}


class Dispatcher:
    """All pods, and the calls that they get from one queue. Used from the event loop alone."""

    def __init__(
        self,
        queue: CallQueue[Call],
        spool: Spool,
        name: str,
        run_seconds: float,
        answer_seconds: float,
        requeued: Callable[[], None] = lambda: None,
    ) -> None:
        """``run_seconds``: after this time the gateway ends a run. The worker should have ended it before."""
        self._loop = asyncio.get_running_loop()
        self._queue = queue
        self._spool = spool
        self._run_seconds = run_seconds
        self._answer_seconds = answer_seconds
        self._requeued = requeued
        self._reservation = b"OPTIONS * HTTP/1.1\r\nHost: worker\r\nPercore-Gateway: %s\r\n\r\n" % name.encode()
        self.pods: dict[Key, Pod] = {}
        """Every pod that is listed, or that still has a run."""
        self._idle: dict[Key, Pod] = {}
        """Pods to try. The pod that was freed last is at the end, because it is the most likely to be free."""
        self._listed: frozenset[Key] = frozenset()
        self._known = asyncio.Event()
        """Set when the first complete list of pods has come."""
        self._asked: dict[WorkerConnection, Key] = {}
        """Reservations that only ask whether a pod is free."""
        self._waiting = 0
        """Number of pods that have not answered their reservation. Only pods that were tried since the queue was last empty
        count."""
        self._doubled = 0
        self._ramp: asyncio.TimerHandle | None = None
        self.running = 0
        """Calls that hold a worker."""

    # --- pods

    def publish(self, endpoints: Iterable[Endpoint]) -> None:
        """Take in the present pods."""
        listed = {key_of(endpoint): endpoint for endpoint in endpoints}
        for key, endpoint in listed.items():
            pod = self.pods.get(key)
            if pod is None:
                self.pods[key] = pod = Pod(endpoint, usable=False)
            pod.endpoint = endpoint
            if is_usable(endpoint):
                if not pod.usable:
                    pod.usable = True
                    self._offer(pod)
            else:
                self._retire(pod)
        for key in self.pods.keys() - listed.keys():
            self._retire(self.pods[key])
            if self.pods[key].task is None:
                del self.pods[key]
        self._listed = frozenset(listed)
        self._known.set()
        self._ask_no_more()
        self.match()

    def _retire(self, pod: Pod) -> None:
        """Give a pod no new calls. What runs there goes on."""
        pod.usable = False
        self._idle.pop(key_of(pod.endpoint), None)
        if pod.state is PodState.WAITING and pod.task is not None:
            pod.task.cancel()
        elif pod.state in (PodState.RESERVED, PodState.RUNNING) or pod.task is None:
            pod.state = PodState.ENDING

    def _offer(self, pod: Pod) -> None:
        """Put a pod on the list of pods to try."""
        key = key_of(pod.endpoint)
        if not pod.usable:
            pod.state = PodState.ENDING
            if key not in self._listed:
                self.pods.pop(key, None)
            return
        if self.pods.get(key) is pod and pod.task is None:
            pod.state = PodState.UNKNOWN
            self._idle[key] = pod

    # --- who is tried

    def match(self) -> None:
        """Try one pod for each queued call. If these pods do not answer in time, try twice as many, and so on."""
        queued = len(self._queue)
        if not queued:
            return
        wanted = queued << min(self._doubled, 20)
        while self._idle and self._waiting < wanted:
            _, pod = self._idle.popitem()
            pod.state, pod.waits = PodState.WAITING, True
            self._waiting += 1
            pod.task = self._loop.create_task(self._serve(pod))
            pod.task.add_done_callback(partial(self._served, pod))
        if self._idle and self._ramp is None:
            self._ramp = self._loop.call_later(PATIENCE_SECONDS, self._double)

    def _double(self) -> None:
        self._ramp = None
        if len(self._queue):
            self._doubled += 1
            self.match()

    def queue_shrank(self) -> None:
        """Take note that a call left the queue. If the queue is empty now, the next call begins a new search for a free pod.

        Reservations that are not answered stay open. Otherwise a pod that computes for long would collect dead connections.
        """
        if len(self._queue):
            return
        self._doubled = 0
        if self._ramp is not None:
            self._ramp.cancel()
            self._ramp = None
        if self._waiting:
            for pod in self.pods.values():
                self._answered(pod)

    # --- is a pod free

    async def until_free(self, name: str) -> None:
        """Return when a pod computes nothing that it computed before: it answers a reservation that is sent now, or it is gone.

        The reservation is one of its own: the pod may have answered another one before the run that is asked about began. A pod
        is gone if the list of pods does not have it. Before the first list has come, that is not known.
        """
        await self._known.wait()
        while (key := self._key_of(name)) is not None:
            try:
                await self._ask(key)
            except (OSError, TimeoutError):
                await asyncio.sleep(LONGEST_BACKOFF_SECONDS)
            else:
                return

    def _key_of(self, name: str) -> Key | None:
        return next((key for key in self._listed if self.pods[key].name == name), None)

    async def _ask(self, key: Key) -> None:
        """Wait until a pod answers a reservation, however long that takes; raise OSError or TimeoutError if it cannot."""
        _, address, port = key
        worker = await connect(address, port)
        self._asked[worker] = key
        try:
            if key not in self._listed:
                raise ConnectionAbortedError("the pod is gone")
            await worker.reserve(self._reservation)
        finally:
            del self._asked[worker]
            worker.close()

    def _ask_no_more(self) -> None:
        """End the questions to pods that are gone."""
        for worker, key in self._asked.items():
            if key not in self._listed:
                worker.abort()

    # --- one pod

    async def _serve(self, pod: Pod) -> float:
        """Reserve a pod and run the next call there; return how long not to try the pod again, in seconds."""
        worker: WorkerConnection | None = None
        call: Call | None = None
        try:
            worker = await connect(pod.endpoint.address, pod.endpoint.port)
            await worker.reserve(self._reservation)
            self._answered(pod)
            call = self._queue.pop() if pod.usable else None
            if call is None:
                return 0.0
            pod.state = PodState.RESERVED
            self.running += 1
            self.queue_shrank()
            try:
                return await self._run(pod, worker, call)
            finally:
                self.running -= 1
        except (OSError, TimeoutError):
            return pod.fail()
        except Exception:
            log.exception("pod %s could not be served", pod.name)
            if call is not None:
                call.fail(GatewayFailed())
                if worker is not None:
                    worker.abort()
            return pod.fail()
        finally:
            if worker is not None:
                worker.close()

    def _answered(self, pod: Pod) -> None:
        """Take note that a reservation no longer counts as waiting."""
        if pod.waits:
            pod.waits = False
            self._waiting -= 1

    def _served(self, pod: Pod, task: asyncio.Task[float]) -> None:
        """Offer a pod again. This is a callback, because a task that is cancelled before it starts runs no code of its own."""
        self._answered(pod)
        pod.task = None
        delay = 0.0 if task.cancelled() else task.result()
        if delay and pod.usable:
            pod.state = PodState.UNKNOWN
            self._loop.call_later(delay, self._try_again, pod)
        else:
            self._offer(pod)
            self.match()

    def _try_again(self, pod: Pod) -> None:
        self._offer(pod)
        self.match()

    async def _run(self, pod: Pod, worker: WorkerConnection, call: Call) -> float:
        """Send a call and pass its answer on; return how long not to try the pod again."""
        call.state, call.pod, call.connection = CallState.SENDING, pod.name, worker
        try:
            await self._send(worker, call)
        except (OSError, TimeoutError) as error:
            return self._not_begun(pod, call, worker, error)
        except CallError as error:
            call.fail(error)
            worker.abort()
            return 0.0
        call.body.discard()  # it is never sent again
        if call.ended:
            worker.abort()
            return 0.0
        call.state, call.begun = CallState.RUNNING, time.monotonic()
        if pod.usable:
            pod.state = PodState.RUNNING
        pod.failures = 0
        backstop = self._loop.call_later(self._run_seconds, self._overrun, call, worker)
        try:
            await call.take(worker, partial(relay, call, worker, self._spool, self._answer_seconds))
            call.finish()
        except Disconnected as error:
            worker.abort()
            call.fail(error)
        except (OSError, TimeoutError) as error:
            worker.abort()
            call.fail(self._lost(call, error))
        finally:
            backstop.cancel()
            call.run_seconds = time.monotonic() - call.begun
            call.connection = None
            if call.state is CallState.RUNNING:
                call.state = CallState.ANSWERING
        return 0.0

    @staticmethod
    def _overrun(call: Call, worker: WorkerConnection) -> None:
        call.overrun = True
        worker.abort()

    def _lost(self, call: Call, error: BaseException) -> CallError:
        if call.overrun:
            return RunTimeout(f"the call had no answer after {self._run_seconds:g} s, and was ended")
        if not call.is_stopped:
            log.warning("call %s: pod %s was lost while it ran: %s", call.request_id, call.pod, error)
        return PodLost("the pod went away while it computed the call; whether to send it again is yours to decide")

    def _not_begun(self, pod: Pod, call: Call, worker: WorkerConnection, error: BaseException) -> float:
        """Put a call back, because its worker was lost before the last byte. Return how long not to try the pod again.

        A worker that got no byte of the call did not end because of the call. If the gateway was late, or if the client left,
        it is not the pod's fault.
        """
        call.connection = None
        if call.ended:
            return 0.0
        delay = 0.0 if isinstance(error, TooLate) else pod.fail()
        call.broken_sends += worker.used
        call.requeues += 1
        if call.broken_sends >= MOST_BROKEN_SENDS:
            call.fail(PodLost(f"{MOST_BROKEN_SENDS} workers ended while they received the call; it may be what ends them"))
        elif call.overdue:
            call.fail(QueueTimeout("the call was queued for longer than it may be, and never ran"))
        else:
            call.state, call.pod = CallState.QUEUED, ""
            self._requeued()
            self._queue.push(call)
            call.put_back()
        return delay

    async def _send(self, worker: WorkerConnection, call: Call) -> None:
        """Send head and body; the last byte goes only when the kernel has all others."""
        request, body = call.request, call.body
        worker.expect(head_only=request.method == b"HEAD")
        waiting = self._head(call)
        if body.on_disk:  # the worker waits for 0.1 s only, and a disk may take longer
            if not await worker.send(waiting):
                return
            waiting = b""
        async for piece in body.pieces():
            if waiting and len(waiting) + len(piece) > SMALL_BYTES:
                if not await worker.send(waiting):
                    return
                waiting = piece
            else:
                waiting += piece
        if call.is_stored:
            if not await worker.send(waiting[:-1]):
                return
            waiting = waiting[-1:]
            await call.begin()
        await worker.send_last(waiting)

    @staticmethod
    def _head(call: Call) -> bytes:
        request = call.request
        lines = [b"%s %s HTTP/1.1" % (request.method, request.target)]
        dropped = NOT_FORWARDED | (connection_tokens(request.headers) - {b"host"})
        for name, value in request.headers:
            lowered = name.lower()
            if lowered not in dropped and not lowered.startswith(OWN_PREFIX):
                lines.append(b"%s: %s" % (name, value))
        if request.header(b"host") is None:
            lines.append(b"Host: worker")
        lines.append(b"X-Request-ID: " + call.request_id.encode("latin-1"))
        lines.append(b"Percore-Client: " + request.client.encode("latin-1"))
        lines += [b"%s: %s" % header for header in call.extra_headers()]
        if call.body.size:
            return b"\r\n".join(lines) + b"\r\nContent-Length: %d\r\n\r\n" % call.body.size
        return b"\r\n".join(lines) + b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
