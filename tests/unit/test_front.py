"""Which connection the front closes at the bound."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from percore.http.front import Front, FrontLimits


class Connection:
    aborted = False

    def abort(self) -> None:
        self.aborted = True


def front(connections: int) -> Front:
    loop = cast("Any", type("Loop", (), {"time": lambda _: 0.0}))()
    return Front(cast("asyncio.AbstractEventLoop", loop), cast("Any", None), FrontLimits(connections, 60.0, 60.0))


def joined(to: Front, *, begun: bool = False) -> Any:
    connection = cast("Any", Connection())
    to.joined(connection)
    if begun:
        to.head_begins(connection)
    return connection


def test_the_connection_idle_longest_is_closed_before_one_that_sends_its_head() -> None:
    limited = front(3)
    sending, idle, later = joined(limited, begun=True), joined(limited), joined(limited)
    assert [each.aborted for each in (sending, idle, later)] == [False, True, False]


def test_incomplete_heads_on_all_connections_do_not_prevent_a_new_connection() -> None:
    """Otherwise a probe on the status port would wait until one of a thousand such heads has timed out."""
    limited = front(3)
    first, second, probe = joined(limited, begun=True), joined(limited, begun=True), joined(limited)
    assert [each.aborted for each in (first, second, probe)] == [True, False, False]


def test_a_connection_whose_head_is_complete_is_never_closed_for_another() -> None:
    limited = front(3)
    busy = [joined(limited, begun=True), joined(limited, begun=True)]
    for each in busy:
        limited.head_ends(each)
    joined(limited)
    assert [each.aborted for each in busy] == [False, False]
