"""The loop that sends the due webhooks: several at once, few to one host, each in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from percore.gateway.store.database import StoreFailed
from percore.gateway.store.webhooks import Delivery, Outcome, WebhookSettings, next_attempt, send

log = logging.getLogger("percore.gateway")
DELIVERED, FAILED, GIVEN_UP = "delivered", "failed", "given-up"
"""The outcomes that are counted. ``failed`` is sent again."""
SENDS = 16
"""The most attempts at once."""
SENDS_PER_HOST = 2
POLL_SECONDS = 1.0
"""How often it looks for due deliveries, because retries become due with time, and other gateways store deliveries."""
PAUSE_SECONDS = 5.0
"""If the outbox fails, it is not used for this time."""
FAULT = Outcome(False, None, "a fault of percore; the log has the reason")


class Outbox(Protocol):
    """The deliveries that are stored. Each one stays until it is ``delivered``, or ``failed`` without a next time.

    Every method raises StoreFailed while the database cannot be used. The database logs that once.
    """

    async def take(self, sending: Collection[str], full: Collection[str]) -> Delivery | None:
        """Return the delivery that has been due for longest by the clock of the outbox, or None.

        It returns no delivery in ``sending`` (ids), and none to ``full`` (hosts as in ``Delivery.host``). If several gateways
        share the outbox, no other gateway gets the delivery for ``WebhookSettings.lease_seconds``.
        """

    async def delivered(self, id: str) -> None:  # noqa: A002 - the webhook's `id`
        """Remove a delivery."""

    async def failed(self, id: str, delay: float | None, reason: str) -> None:  # noqa: A002
        """Count an attempt; the delivery is due again after ``delay`` seconds. None: remove it."""


class Sender:
    """Sends the deliveries of an outbox."""

    def __init__(
        self,
        outbox: Outbox,
        settings: WebhookSettings,
        count: Callable[[str], None],
        attempt: Callable[[Delivery, WebhookSettings], Outcome] = send,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``count`` is called with each outcome: one of DELIVERED, FAILED and GIVEN_UP."""
        self._outbox = outbox
        self._settings = settings
        self._count = count
        self._attempt = attempt
        self._clock = clock
        self._news = asyncio.Event()
        self._sends: dict[str, asyncio.Task[None]] = {}
        self._hosts: Counter[str] = Counter()

    def wake(self) -> None:
        """Look for deliveries at once, because one was stored; call it on the loop's thread."""
        self._news.set()

    async def run(self) -> None:
        """Send until cancelled. Then begin no more attempts, and end when the running attempts are recorded.

        That may take as long as one attempt. A second cancellation ends it at once. Then the outbox still has these deliveries.
        """
        threads = ThreadPoolExecutor(SENDS, "webhook")
        try:
            while True:
                self._news.clear()
                delivery = await self._take()
                if delivery:
                    self._begin(delivery, threads)
                else:
                    await self._wait()
        finally:
            try:
                await self._finish()
            finally:
                for task in self._sends.values():
                    task.cancel()
                threads.shutdown(wait=False, cancel_futures=True)

    async def _take(self) -> Delivery | None:
        if len(self._sends) >= SENDS:
            return None
        full = [host for host, count in self._hosts.items() if count >= SENDS_PER_HOST]
        try:
            return await self._outbox.take(list(self._sends), full)
        except StoreFailed:
            pass
        except Exception:
            log.exception("webhooks that are due could not be read; the gateway tries again")
        await asyncio.sleep(PAUSE_SECONDS)
        return None

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _finish(self) -> None:
        if self._sends:
            await asyncio.wait(self._sends.values(), timeout=self._settings.lease_seconds)

    def _begin(self, delivery: Delivery, threads: ThreadPoolExecutor) -> None:
        host = delivery.host
        self._hosts[host] += 1
        task = asyncio.create_task(self._send(delivery, threads), name=f"webhook {delivery.id}")
        self._sends[delivery.id] = task

        def end(_task: asyncio.Task[None]) -> None:
            del self._sends[delivery.id]
            self._hosts[host] -= 1
            self._hosts += Counter()  # removes hosts whose count is 0
            self._news.set()

        task.add_done_callback(end)

    async def _send(self, delivery: Delivery, threads: ThreadPoolExecutor) -> None:
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(threads, self._attempt, delivery, self._settings)
        except Exception:
            log.exception("webhook %s: the attempt failed", delivery.id)
            outcome = FAULT
        attempts, now = delivery.attempts + 1, self._clock()
        next_at = None if outcome.gone else next_attempt(attempts, delivery.created, now, outcome.retry_after)
        self._count(DELIVERED if outcome.delivered else FAILED if next_at else GIVEN_UP)
        delay = None if next_at is None else next_at - now
        self._log(delivery, outcome, delay)
        while not await self._record(delivery, outcome, delay):
            await asyncio.sleep(PAUSE_SECONDS)

    async def _record(self, delivery: Delivery, outcome: Outcome, delay: float | None) -> bool:
        """Record the outcome of an attempt. Return False if the outbox failed.

        Then the caller must try again, because a delivered webhook without a record would be sent again.
        """
        try:
            if outcome.delivered:
                await self._outbox.delivered(delivery.id)
            else:
                await self._outbox.failed(delivery.id, delay, outcome.reason)
        except StoreFailed:
            return False
        except Exception:
            log.exception("webhook %s: its outcome could not be written; the gateway tries again", delivery.id)
            return False
        return True

    def _log(self, delivery: Delivery, outcome: Outcome, delay: float | None) -> None:
        last = not outcome.delivered and delay is None
        log.log(
            logging.WARNING if last else logging.INFO,
            "webhook %s: attempt %d to %s: %s%s",
            delivery.id,
            delivery.attempts + 1,
            delivery.host,
            outcome.reason,
            "; it is not sent again" if last else "",
        )
