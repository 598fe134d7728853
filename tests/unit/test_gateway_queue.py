"""The queue: its order is exact, even if calls leave it or come back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from percore.gateway.queue import CallQueue


@dataclass(eq=False)
class Waiting:
    number: int
    priority: int = 0
    caller: bytes | None = None
    round: int = -1
    is_stored: bool = False


NOW = 10**6
"""A number after all others."""


def ahead_of(queue: CallQueue[Waiting], *priorities: int) -> list[int]:
    """Return how many calls are ahead of one that arrives now, for each priority."""
    return [queue.ahead(Waiting(NOW, priority, round=0)) for priority in priorities]


def drained(queue: CallQueue[Waiting]) -> list[int]:
    found = []
    while (call := queue.pop()) is not None:
        found.append(call.number)
    return found


def test_calls_run_by_priority_and_then_by_arrival() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    for call in (Waiting(1), Waiting(2, 5), Waiting(3), Waiting(4, 9), Waiting(5, 5)):
        queue.push(call)
    assert ahead_of(queue, 0, 5, 9) == [5, 3, 1]
    assert drained(queue) == [4, 2, 5, 1, 3]
    assert len(queue) == 0


def test_a_call_that_comes_back_takes_its_old_place() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    for number in range(1, 5):
        queue.push(Waiting(number))
    first, second = queue.pop(), queue.pop()
    assert first is not None
    assert second is not None
    queue.push(second)
    queue.push(first)
    assert drained(queue) == [1, 2, 3, 4]


def test_a_call_is_queued_once() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    call = Waiting(1)
    queue.push(call)
    with pytest.raises(ValueError, match="queued already"):
        queue.push(call)


def test_the_calls_ahead_are_those_that_run_before_a_new_call() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    assert ahead_of(queue, 0) == [0]
    calls = [Waiting(number, priority) for number, priority in enumerate((0, 9, 5, 5, 0, 7, 5))]
    for call in calls:
        queue.push(call)
    # Calls of the same priority are ahead, and calls of a lower one are not. This includes a priority without calls.
    assert dict(enumerate(ahead_of(queue, *range(11)))) == {
        **dict.fromkeys([0], 7),
        **dict.fromkeys([1, 2, 3, 4, 5], 5),
        **dict.fromkeys([6, 7], 2),
        **dict.fromkeys([8, 9], 1),
        10: 0,
    }


def test_only_queued_calls_are_ahead_of_others() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    calls = [Waiting(1, 5), Waiting(2), Waiting(3, 5), Waiting(4, 9)]
    for call in calls:
        queue.push(call)

    def ahead() -> list[int]:
        return ahead_of(queue, 0, 5, 9)

    assert ahead() == [4, 3, 1]
    first = queue.pop()
    assert first is calls[3]
    assert ahead() == [3, 2, 0]
    assert queue.remove(calls[0])
    assert not queue.remove(calls[0])
    assert ahead() == [2, 1, 0]
    queue.push(first)
    assert ahead() == [3, 2, 1]
    assert drained(queue) == [4, 3, 2]
    assert queue.pop() is None
    assert ahead() == [0, 0, 0]


def test_callers_that_leave_do_not_make_the_queue_grow() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    kept = Waiting(0)
    queue.push(kept)
    for number in range(1, 10_000):
        call = Waiting(number)
        queue.push(call)
        assert queue.remove(call)
        assert not queue.remove(call)
    assert len(queue._keys) == 1
    assert kept in queue
    assert drained(queue) == [0]


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove", "return"]), st.integers(0, 9), st.integers(0, 50))))
def test_the_queue_has_the_order_of_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    queue: CallQueue[Waiting] = CallQueue()
    model: list[Waiting] = []
    out: list[Waiting] = []
    for number, (step, priority, pick) in enumerate(steps):
        if step == "push":
            call = Waiting(number, priority)
            queue.push(call)
            model.append(call)
        elif step == "pop":
            model.sort(key=lambda each: (-each.priority, each.number))
            expected = model.pop(0) if model else None
            assert queue.pop() is expected
            out += [expected] if expected else []
        elif step == "remove" and model:
            call = model.pop(pick % len(model))
            assert queue.remove(call)
        elif step == "return" and out:
            call = out.pop(pick % len(out))
            queue.push(call)
            model.append(call)
        assert len(queue) == len(model)
        for each in range(11):
            assert ahead_of(queue, each) == [sum(call.priority >= each for call in model)]
        for call in model:
            key = (-call.priority, call.number)
            assert queue.ahead(call) == sum((-each.priority, each.number) < key for each in model)


def test_callers_take_turns_within_a_priority() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    many = [Waiting(number, caller=b"many") for number in range(4)]
    one, urgent = Waiting(10, caller=b"one"), Waiting(11, 9, b"many")
    for call in (*many, one, urgent):
        queue.push(call)
    assert [queue.ahead(call) for call in (*many, one, urgent)] == [1, 3, 4, 5, 2, 0]
    assert drained(queue) == [11, 0, 10, 1, 2, 3]


def test_a_caller_that_sends_one_call_after_the_other_does_not_delay_another_caller() -> None:
    """Its next call always comes just after its last one was taken, so it never has two calls in the queue."""
    queue: CallQueue[Waiting] = CallQueue()
    for number in range(3):
        queue.push(Waiting(number, caller=b"batch"))
    taken = []
    queue.push(Waiting(10, caller=b"loop"))
    for number in range(11, 17):
        call = queue.pop()
        assert call is not None
        taken.append(call.caller)
        if call.caller == b"loop":
            queue.push(Waiting(number, caller=b"loop"))
    assert taken == [b"batch", b"loop", b"batch", b"loop", b"batch", b"loop"]


def test_callers_of_past_rounds_are_forgotten() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    for number in range(10_000):
        queue.push(Waiting(number, caller=b"%d" % number))
        queue.push(Waiting(10_000 + number, caller=b"%d" % number))
        queue.pop(), queue.pop()
    assert len(queue._last) < 3000


def test_calls_that_are_not_stored_are_counted() -> None:
    queue: CallQueue[Waiting] = CallQueue()
    calls = [Waiting(number, is_stored=number % 2 == 1) for number in range(5)]
    for call in calls:
        queue.push(call)
    assert queue.unstored == 3
    queue.pop()
    queue.remove(calls[1])
    queue.remove(calls[2])
    assert queue.unstored == 1
