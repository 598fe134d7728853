"""The dispatcher: binds the next call to a pod that has said that it is free.

One coroutine for each pod that is tried: reserve, take the next call from the queue, send it, pass the answer on. A reservation
is a connection on which the worker has answered. So a call is bound late, and the gateway polls no pod.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from percore.errors import CallError, GatewayFailed, PodLost, QueueTimeout, RunTimeout
from percore.gateway.call import Call, CallBody, CallState
from percore.gateway.delivery import deliver_later
from percore.gateway.endpoints import Endpoint
from percore.gateway.pods import LONGEST_BACKOFF_SECONDS, Key, Pod, Pods, PodState
from percore.gateway.queue import CallQueue
from percore.gateway.spool import SMALL_BYTES, Spool
from percore.gateway.upstream import TooLate, WorkerConnection, connect
from percore.http.request import OWN_PREFIX, Disconnected, Header

log = logging.getLogger("percore.gateway")

PATIENCE_SECONDS = 0.002
"""How long reservations may stay unanswered before twice as many pods are tried."""
MOST_BROKEN_SENDS = 10
"""If so many workers end while they receive the same call, the call probably ends them, and is answered 502."""
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade"
    b" http2-settings".split()
)
"""Headers that belong to one connection and are never passed on. Source: RFC 9110, section 7.6.1."""
DROPPED_FROM_CALLS = HOP_BY_HOP | {b"content-length", b"expect", b"x-request-id"}
DROPPED_FROM_ANSWERS = HOP_BY_HOP | {b"content-length", b"x-request-id", b"server-timing"}


class Dispatcher:
    """All pods, and the calls that they get from one queue. Used only from the event loop."""

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
        self._pods = Pods()
        self._asked: dict[WorkerConnection, Key] = {}
        """Reservations that only ask whether a pod is free."""
        self._waiting = 0
        """Number of pods that have not answered their reservation. It includes only pods that were tried since the
        queue was last empty."""
        self._doubled = 0
        self._ramp: asyncio.TimerHandle | None = None
        self.running = 0
        """Calls that hold a worker."""

    @property
    def pods(self) -> Mapping[Key, Pod]:
        """Every pod that is listed, or that still has a run."""
        return self._pods.known

    def publish(self, endpoints: Iterable[Endpoint]) -> None:
        """Replace the list of pods."""
        self._pods.publish(endpoints)
        self._cancel_asked()
        self.match()

    # --- the choice of pods to try

    def match(self) -> None:
        """Try one pod for each queued call. If these pods do not answer in time, try twice as many, and so on."""
        queued = len(self._queue)
        if not queued:
            return
        idle, wanted = self._pods.to_try, queued << min(self._doubled, 20)
        while idle and self._waiting < wanted:
            _, pod = idle.popitem()
            pod.state, pod.reservation_pending = PodState.WAITING, True
            self._waiting += 1
            pod.task = self._loop.create_task(self._serve(pod))
            pod.task.add_done_callback(partial(self._served, pod))
        if idle and self._ramp is None:
            self._ramp = self._loop.call_later(PATIENCE_SECONDS, self._try_more_pods)

    def _try_more_pods(self) -> None:
        self._ramp = None
        if len(self._queue):
            self._doubled += 1
            self.match()

    def queue_shrank(self) -> None:
        """Handle the removal of a call from the queue. If the queue is empty now, the next call begins a new search for a pod.

        Reservations that are not answered stay open. If each search closed them and sent new ones, a pod that computes for
        long would collect dead connections.
        """
        if len(self._queue):
            return
        self._doubled = 0
        if self._ramp is not None:
            self._ramp.cancel()
            self._ramp = None
        if self._waiting:
            for pod in self._pods.known.values():
                self._stop_counting(pod)

    # --- one pod

    async def _serve(self, pod: Pod) -> float:
        """Reserve a pod and run the next call there. Return the delay before the pod is tried again, in seconds."""
        worker: WorkerConnection | None = None
        call: Call | None = None
        try:
            worker = await connect(pod.endpoint.address, pod.endpoint.port)
            await worker.reserve(self._reservation)
            self._stop_counting(pod)
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
            return self._pods.back_off(pod)
        except Exception:
            log.exception("pod %s could not be served", pod.name)
            if call is not None:
                call.fail(GatewayFailed())
                if worker is not None:
                    worker.abort()
            return self._pods.back_off(pod)
        finally:
            if worker is not None:
                worker.close()

    def _stop_counting(self, pod: Pod) -> None:
        """Remove the pod's reservation from the count of unanswered reservations."""
        if pod.reservation_pending:
            pod.reservation_pending = False
            self._waiting -= 1

    def _served(self, pod: Pod, task: asyncio.Task[float]) -> None:
        """Offer a pod again. This is a callback, because a task that is cancelled before it starts runs no code of its own."""
        self._stop_counting(pod)
        pod.task = None
        delay = 0.0 if task.cancelled() else task.result()
        if delay and pod.usable:
            pod.state = PodState.UNKNOWN
            self._loop.call_later(delay, self._try_again, pod)
        else:
            self._pods.offer(pod)
            self.match()

    def _try_again(self, pod: Pod) -> None:
        self._pods.offer(pod)
        self.match()

    async def _run(self, pod: Pod, worker: WorkerConnection, call: Call) -> float:
        """Send a call and pass its answer on. Return the delay before the pod is tried again, in seconds."""
        call.state, call.pod, call.connection = CallState.SENDING, pod.name, worker
        try:
            await self._send(worker, call)
        except (OSError, TimeoutError) as error:
            return self._requeue(pod, call, worker, error)
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
            await (call.record(worker) if call.is_stored else self._pass_on(call, worker))
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
        if not call.is_cancelling:
            log.warning("call %s: pod %s was lost while it ran: %s", call.request_id, call.pod, error)
        return PodLost("the pod was lost while it computed the call; percore does not know whether it may be sent again")

    def _requeue(self, pod: Pod, call: Call, worker: WorkerConnection, error: BaseException) -> float:
        """Queue a call again, because its worker was lost before the last byte. Return the delay before the pod is tried again.

        If the worker got no byte of the call, it did not end because of the call. If the gateway was late, or if the client
        left, it is not the pod's fault.
        """
        call.connection = None
        if call.ended:
            return 0.0
        delay = 0.0 if isinstance(error, TooLate) else self._pods.back_off(pod)
        call.broken_sends += worker.used
        call.requeues += 1
        if call.broken_sends >= MOST_BROKEN_SENDS:
            call.fail(PodLost(f"{MOST_BROKEN_SENDS} workers ended while they received the call; the call may be the cause"))
        elif call.overdue:
            call.fail(QueueTimeout("the call was queued for longer than the queue timeout, and never ran"))
        else:
            call.state, call.pod = CallState.QUEUED, ""
            self._requeued()
            self._queue.push(call)
            call.put_back()
        return delay

    async def _send(self, worker: WorkerConnection, call: Call) -> None:
        """Send head and body. Send the last byte only when the kernel has all other bytes."""
        request, body = call.request, call.body
        worker.expect(head_only=request.method == b"HEAD")
        head = self._head(call)
        if body.in_memory is not None and body.size <= SMALL_BYTES:
            waiting = head + b"".join(body.in_memory)
        else:
            waiting = await self._send_pieces(worker, head, body)
        if not waiting:
            return
        if call.is_stored:
            if not await worker.send(waiting[:-1]):
                return
            waiting = waiting[-1:]
            await call.begin()
        await worker.send_last(waiting)

    @staticmethod
    async def _send_pieces(worker: WorkerConnection, head: bytes, body: CallBody) -> bytes:
        """Send head and body, and return their end, which is not sent yet. Empty: the worker has answered already."""
        waiting = head
        if body.in_memory is None:  # send the head now: the worker waits only 0.1 s, and the disk may take longer
            if not await worker.send(head):
                return b""
            waiting = b""
        async for piece in body.pieces():
            if waiting and len(waiting) + len(piece) > SMALL_BYTES:
                if not await worker.send(waiting):
                    return b""
                waiting = piece
            else:
                waiting += piece
        return waiting

    @staticmethod
    def _head(call: Call) -> bytes:
        request = call.request
        lines = [b"%s %s HTTP/1.1" % (request.method, request.target)]
        dropped = DROPPED_FROM_CALLS | (connection_tokens(request.headers) - {b"host"})
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

    # --- the answer

    async def _pass_on(self, call: Call, worker: WorkerConnection) -> None:
        """Pass the worker's answer on. Returns when the worker has sent all of it; raises ConnectionError if it is lost.

        If the client reads fast enough, it gets each piece as soon as the worker has sent it.
        """
        await worker.answer()
        request = call.request
        headers, length = answer_headers(worker.headers, call.request_id, call.queue_seconds)
        call.status = worker.status
        head = request.head(worker.status, headers, length, worker.phrase)
        if request.bodyless(worker.status):
            request.write(head)
            request.finish()
            return
        first = worker.take() if worker.buffered else b""
        request.write(head + request.frame(first))
        while not worker.complete or worker.buffered:
            piece = request.frame(await worker.piece())
            if piece and request.writable and not call.is_delivering:
                request.write(piece)
            elif piece:
                await deliver_later(call, piece, self._spool, self._answer_seconds)
        call.sent_all = True
        if not call.is_delivering:
            request.finish()  # in the same step as the last byte, because the client may send its next request at once

    # --- is a pod free

    async def until_free(self, name: str) -> None:
        """Wait until a pod has ended all runs that it computes now: it answers a new reservation, or it is gone.

        This needs a new reservation, because the pod may have answered an older one before the run began. A pod is gone if the
        list of pods does not have it. So this waits for the first list.
        """
        await self._pods.are_known.wait()
        while (key := self._pods.find(name)) is not None:
            try:
                await self._ask(key)
            except (OSError, TimeoutError):
                await asyncio.sleep(LONGEST_BACKOFF_SECONDS)
            else:
                return

    async def _ask(self, key: Key) -> None:
        """Wait without a timeout until a pod answers a reservation. Raise OSError or TimeoutError if the pod is lost."""
        _, address, port = key
        worker = await connect(address, port)
        self._asked[worker] = key
        try:
            if key not in self._pods.listed:
                raise ConnectionAbortedError("the pod is gone")
            await worker.reserve(self._reservation)
        finally:
            del self._asked[worker]
            worker.close()

    def _cancel_asked(self) -> None:
        """Close the connections in ``_asked`` whose pods are gone."""
        for worker, key in self._asked.items():
            if key not in self._pods.listed:
                worker.abort()


def connection_tokens(headers: Iterable[Header]) -> frozenset[bytes]:
    """Return the names of headers that ``Connection`` declares to belong to this connection alone, in lower case."""
    values = [value.lower() for name, value in headers if name.lower() == b"connection"]
    return frozenset([token.strip() for value in values for token in value.split(b",")])


def answer_headers(headers: Sequence[Header], request_id: str, queue_seconds: float) -> tuple[list[Header], int | None]:
    """Return the headers for the client, and the body's length; None if the worker's answer does not have it."""
    passed: list[Header] = []
    length: int | None = None
    timing = b"queue;dur=%.3f" % (queue_seconds * 1000)
    dropped = DROPPED_FROM_ANSWERS | connection_tokens(headers)
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            length = int(value)
        elif lowered == b"server-timing":
            timing += b", " + value
        elif lowered not in dropped:
            passed.append((name, value))
    passed += [(b"X-Request-ID", request_id.encode("latin-1")), (b"Server-Timing", timing)]
    return passed, length
