"""What HAProxy is told, given what is known."""

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from percore.gateway.endpoints import Endpoint, State
from percore.gateway.plan import (
    Admin,
    Assign,
    Command,
    Drain,
    Health,
    Ready,
    Release,
    Server,
    busy,
    plan,
    pods_by_state,
    unplaced,
)


def pod(number: int, state: State = State.READY) -> Endpoint:
    return Endpoint(f"10.0.{number // 250}.{number % 250 + 1}", 8080, 9090, state, f"pod-{number}")


def slots(count: int) -> tuple[Server, ...]:
    return tuple(Server(slot) for slot in range(1, count + 1))


def serving(slot: int, number: int, admin: Admin = Admin.READY, sessions: int = 0, health: Health = Health.UP) -> Server:
    return Server(slot, *pod(number).place, admin, health, sessions)


def carried_out(servers: Iterable[Server], commands: Iterable[Command]) -> tuple[Server, ...]:
    """Do to servers what HAProxy does."""
    after = {server.slot: server for server in servers}
    for command in commands:
        server = after[command.slot]
        match command:
            case Assign(_, endpoint):
                assert server.admin is Admin.FREE
                assert not server.sessions
                address, port = endpoint.place
                server = replace(server, address=address, port=port, admin=Admin.READY, health=Health.UP)
            case Ready():
                server = replace(server, admin=Admin.READY)
            case Drain():
                server = replace(server, admin=Admin.DRAIN)
            case Release():
                server = replace(server, admin=Admin.FREE)
        after[command.slot] = server
    return tuple(after.values())


def test_new_pods_get_the_first_free_slots() -> None:
    servers = (serving(1, 1), Server(2), Server(3))
    assert plan([pod(1), pod(2)], servers) == [Assign(2, pod(2))]


def test_what_is_as_it_should_be_needs_nothing() -> None:
    assert plan([pod(1), pod(2)], (serving(2, 1), serving(1, 2, sessions=1))) == []


def test_a_pod_keeps_its_slot_whatever_comes_before_it() -> None:
    assert plan([pod(0), pod(1)], (Server(1), serving(2, 1))) == [Assign(1, pod(0))]


def test_a_pod_that_terminates_or_is_not_ready_gets_no_new_calls_and_keeps_its_own() -> None:
    for state in (State.TERMINATING, State.NOT_READY):
        assert plan([pod(1, state)], (serving(1, 1, sessions=1),)) == [Drain(1)]
        assert plan([pod(1, state)], (serving(1, 1, Admin.DRAIN, sessions=1),)) == []
        assert plan([pod(1, state)], (Server(1),)) == []


def test_a_pod_that_is_ready_again_gets_calls_again() -> None:
    assert plan([pod(1)], (serving(1, 1, Admin.DRAIN),)) == [Ready(1)]


def test_the_slot_of_a_pod_that_is_gone_is_released_once_its_call_has_ended() -> None:
    assert plan([], (serving(1, 1, sessions=1),)) == [Drain(1)]
    assert plan([], (serving(1, 1, Admin.DRAIN, sessions=1),)) == []
    assert plan([], (serving(1, 1, Admin.DRAIN),)) == [Release(1)]
    assert plan([], (serving(1, 1),)) == [Release(1)]


def test_a_slot_where_a_call_still_runs_is_not_given_out() -> None:
    assert plan([pod(2)], (replace(Server(1), sessions=1),)) == []
    assert plan([pod(2)], (replace(Server(1), sessions=1), Server(2))) == [Assign(2, pod(2))]


def test_a_slot_is_not_released_and_given_out_in_one_breath() -> None:
    """HAProxy forgets what it knows of a server's health only where the slot was free in between."""
    assert plan([pod(2)], (serving(1, 1),)) == [Release(1)]


def test_of_a_pod_and_its_successor_at_one_address_the_one_that_takes_calls_counts() -> None:
    before, after = pod(1, State.TERMINATING), replace(pod(1), pod="successor")
    for endpoints in ([before, after], [after, before]):
        assert plan(endpoints, slots(1)) == [Assign(1, after)]
        assert plan(endpoints, (serving(1, 1, Admin.DRAIN),)) == [Ready(1)]


def test_an_haproxy_that_started_anew_is_told_of_every_pod() -> None:
    endpoints = [pod(number) for number in range(50)]
    before = carried_out(slots(60), plan(endpoints, slots(60)))
    assert carried_out(slots(60), plan(endpoints, slots(60))) == before
    assert plan(endpoints, before) == []


def test_more_pods_than_slots_stay_without_and_are_counted() -> None:
    endpoints = [pod(number) for number in range(5)]
    servers = carried_out(slots(3), plan(endpoints, slots(3)))
    assert plan(endpoints, servers) == []
    assert unplaced(endpoints, servers) == 2
    assert unplaced([*endpoints[:3], pod(9, State.TERMINATING)], servers) == 0


def test_from_none_to_a_thousand_pods_and_back() -> None:
    endpoints = [pod(number) for number in range(1000)]
    servers = slots(1000)
    commands = plan(endpoints, servers)
    assert len(commands) == 1000
    servers = carried_out(servers, commands)
    assert plan(endpoints, servers) == []
    servers = tuple(replace(server, sessions=server.slot % 2) for server in servers)
    servers = carried_out(servers, plan([], servers))
    assert {server.admin for server in servers} == {Admin.FREE, Admin.DRAIN}
    servers = tuple(replace(server, sessions=0) for server in servers)
    servers = carried_out(servers, plan([], servers))
    assert {server.admin for server in servers} == {Admin.FREE}


@settings(max_examples=200)
@given(
    rounds=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 8), st.sampled_from(State), max_size=8),
            st.sets(st.integers(1, 6)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_whatever_happens_in_whatever_order_the_slots_follow(rounds: list[tuple[dict[int, State], set[int]]]) -> None:
    servers = slots(6)
    for states, running in rounds:
        endpoints = [pod(number, state) for number, state in states.items()]
        servers = tuple(replace(each, sessions=int(each.slot in running and each.admin is not Admin.FREE)) for each in servers)
        places = {server.slot: server.place for server in servers if server.sessions}
        for _ in range(3):
            servers = carried_out(servers, plan(endpoints, servers))
        assert plan(endpoints, servers) == []
        ready = {each.place for each in endpoints if each.state is State.READY}
        used = [server for server in servers if server.admin is not Admin.FREE]
        assert len({server.place for server in used}) == len(used)
        assert {server.place for server in used if server.admin is Admin.READY} <= ready
        assert all(servers[slot - 1].place == place for slot, place in places.items())
        assert all(server.sessions or server.place in {each.place for each in endpoints} for server in used)
        free = any(server.admin is Admin.FREE and not server.sessions for server in servers)
        assert not (free and unplaced(endpoints, servers))


def test_a_pod_is_busy_with_a_call_of_ours_or_of_another_gateway_s() -> None:
    assert busy(serving(1, 1, sessions=1))
    assert busy(serving(1, 1, health=Health.TAKEN))
    assert not busy(serving(1, 1))
    assert not busy(serving(1, 1, health=Health.DOWN))


def test_pods_are_counted_by_what_they_do() -> None:
    servers = (
        serving(1, 1),
        serving(2, 2, sessions=1),
        serving(3, 3, sessions=1, health=Health.DOWN),
        serving(4, 4, health=Health.TAKEN),
        serving(5, 5, health=Health.DOWN),
        serving(6, 6, Admin.DRAIN, sessions=1),
        Server(7),
    )
    assert pods_by_state(servers) == {"idle": 1, "busy": 2, "taken": 1, "down": 1, "draining": 1}
