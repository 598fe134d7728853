"""Which pods are marked for scaling in, and how often."""

from percore.gateway.costs import BURST, BUSY_COST, IDLE_COST, MARKS_A_SECOND, SETTLE_SECONDS, Marks
from percore.gateway.marking import Marking
from percore.gateway.telemetry import GatewayTelemetry


def carry_out(marks: Marks, now: float, pods: list[tuple[str, bool]]) -> list[tuple[str, int]]:
    due = marks.due(now, pods)
    for name, cost in due:
        marks.made(name, cost)
    return due


def started(*pods: str) -> Marks:
    """Return marks after a first look at which those pods were there, idle, and whatever was due was done."""
    marks = Marks()
    marks.due(0, [(pod, False) for pod in pods])
    carry_out(marks, 50, [(pod, False) for pod in pods])
    return marks


def test_a_pod_is_marked_when_it_has_been_busy_for_a_while_and_once() -> None:
    marks = started("a", "b")
    assert marks.due(100, [("a", True), ("b", False)]) == []
    assert carry_out(marks, 100 + SETTLE_SECONDS, [("a", True), ("b", False)]) == [("a", BUSY_COST)]
    assert marks.due(200, [("a", True), ("b", False)]) == []


def test_a_pod_that_is_idle_again_loses_its_mark() -> None:
    marks = started("a")
    carry_out(marks, 100, [("a", True)])
    carry_out(marks, 110, [("a", True)])
    assert marks.due(120, [("a", False)]) == []
    assert carry_out(marks, 130, [("a", False)]) == [("a", IDLE_COST)]


def test_short_calls_cost_no_marks() -> None:
    marks = started("a")
    for second in range(100, 160):
        assert marks.due(second, [("a", second % 2 == 0)]) == []


def test_a_pod_that_came_later_bears_no_mark_and_needs_none_while_it_is_idle() -> None:
    marks = started()
    assert marks.due(60, [("new", False)]) == []
    assert marks.due(100, [("new", False)]) == []


def test_what_an_earlier_life_marked_is_marked_anew() -> None:
    marks = Marks()
    assert marks.due(0, [("a", False), ("b", True)]) == []
    assert carry_out(marks, 10, [("a", False), ("b", True)]) == [("b", BUSY_COST), ("a", IDLE_COST)]


def test_busy_pods_come_first_and_no_more_than_the_allowance() -> None:
    pods = [(f"idle-{number}", False) for number in range(500)] + [(f"busy-{number}", True) for number in range(80)]
    marks = Marks()
    marks.due(0, pods)
    first = carry_out(marks, 10, pods)
    assert len(first) == BURST
    assert [cost for _, cost in first[:80]] == [BUSY_COST] * 80
    assert len(carry_out(marks, 11, pods)) == MARKS_A_SECOND
    total = sum(len(carry_out(marks, second, pods)) for second in range(12, 60))
    assert total == 580 - BURST - MARKS_A_SECOND


def test_a_pod_that_is_gone_is_forgotten() -> None:
    marks = started("a")
    carry_out(marks, 100, [("a", True)])
    carry_out(marks, 110, [("a", True)])
    assert marks.due(120, []) == []
    assert marks.due(130, [("a", False)]) == []
    assert marks.due(140, [("a", False)]) == []


class Api:
    """Marks pods, or fails as it is told."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.asked = 0
        self.error: Exception | None = None

    def mark(self, pod: str, cost: int) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.made.append((pod, cost))


def test_while_the_api_server_is_away_it_is_asked_once_a_step_and_caught_up_with_afterwards() -> None:
    api, telemetry, busy = Api(), GatewayTelemetry(), [(f"pod-{number}", True) for number in range(10)]
    marking = Marking(api, lambda: busy, telemetry)
    marking.step(0)
    api.error = OSError("away")
    for now in range(10, 20):
        marking.step(now)
    assert api.asked == 10
    api.error = None
    marking.step(20)
    assert len(api.made) == 10
    assert telemetry.registry.get_sample_value("percore_gateway_deletion_cost_marks_total", {"result": "made"}) == 10
    assert telemetry.registry.get_sample_value("percore_gateway_deletion_cost_marks_total", {"result": "failed"}) == 10


def test_a_pod_that_is_gone_meanwhile_stops_nobody_else_s_mark() -> None:
    class Gone(Api):
        def mark(self, pod: str, cost: int) -> None:
            if pod == "a":
                raise KeyError(pod)
            super().mark(pod, cost)

    api = Gone()
    marking = Marking(api, lambda: [("a", True), ("b", True)], GatewayTelemetry())
    marking.step(0)
    marking.step(10)
    marking.step(20)
    assert api.made == [("b", BUSY_COST)]


def test_a_mark_of_an_earlier_life_is_taken_back_also_where_the_first_look_came_too_soon() -> None:
    api, known = Api(), [None, None, [("a", False)], [("a", False)]]
    marking = Marking(api, lambda: known.pop(0), GatewayTelemetry())
    for now in (0, 1, 2, 12):
        marking.step(now)
    assert api.made == [("a", IDLE_COST)]
