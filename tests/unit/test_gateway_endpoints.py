"""The sources of endpoints: lists, files, and Kubernetes' EndpointSlices."""

from pathlib import Path
from typing import Any

import pytest
from percore.gateway.endpoints import Endpoint, Endpoints, EndpointsFile, Fixed, State, parse
from percore.gateway.slices import endpoints_of
from percore.gateway.slices import parse as parse_slice


class Stop(Exception):
    """Ends a loop that would go on for ever."""


def test_a_fixed_list_is_published_once() -> None:
    published: list[Endpoints] = []
    Fixed(parse("10.0.0.1:1/2")).follow(published.append)
    assert published == [(Endpoint("10.0.0.1", 1, 2),)]


def test_a_file_is_read_again_when_it_changes_and_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    contents: list[str | None] = [
        None,
        "10.0.0.1:1/2",
        "10.0.0.1:1/2\n",
        "nonsense",
        None,
        "10.0.0.1:1/2=not-ready\n10.0.0.2:1/2",
        "",
    ]
    published: list[Endpoints] = []

    def sleep(_seconds: float) -> None:
        if not contents:
            raise Stop
        content = contents.pop(0)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)

    with pytest.raises(Stop):
        EndpointsFile(path, sleep).follow(published.append)
    one, two = Endpoint("10.0.0.1", 1, 2), Endpoint("10.0.0.2", 1, 2)
    assert published == [(one,), (Endpoint("10.0.0.1", 1, 2, State.NOT_READY), two), ()]


def slice_of(*endpoints: dict[str, Any], family: str = "IPv4") -> dict[str, Any]:
    return {"addressType": family, "endpoints": list(endpoints)}


def entry(address: str, pod: str = "", **conditions: bool) -> dict[str, Any]:
    reference = {"targetRef": {"kind": "Pod", "name": pod}} if pod else {}
    return {"addresses": [address], "conditions": conditions, **reference}


def seen(*slices: dict[str, Any]) -> Endpoints:
    return endpoints_of(map(parse_slice, slices), 8080, 9090)


def test_the_endpoints_of_every_slice_count() -> None:
    found = seen(slice_of(entry("10.0.0.1", "a", ready=True)), slice_of(entry("10.0.0.2", "b", ready=True)))
    assert found == (
        Endpoint("10.0.0.1", 8080, 9090, State.READY, "a"),
        Endpoint("10.0.0.2", 8080, 9090, State.READY, "b"),
    )


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ({"ready": True, "serving": True, "terminating": False}, State.READY),
        ({"ready": False, "serving": False, "terminating": False}, State.NOT_READY),
        ({"ready": False, "serving": True, "terminating": True}, State.TERMINATING),
        ({}, State.READY),
    ],
)
def test_conditions_decide_the_state_of_an_endpoint(conditions: dict[str, bool], state: State) -> None:
    assert [each.state for each in seen(slice_of(entry("10.0.0.1", "a", **conditions)))] == [state]


def test_a_slice_may_be_empty() -> None:
    assert seen({"addressType": "IPv4", "endpoints": None}, {"addressType": "IPv4"}) == ()


def test_a_pod_with_addresses_of_both_families_is_one_pod() -> None:
    slices = (slice_of(entry("fd00::1", "a"), family="IPv6"), slice_of(entry("10.0.0.1", "a")))
    assert [each.address for each in seen(*slices)] == ["10.0.0.1"]
    assert [each.address for each in seen(slices[0])] == ["fd00::1"]


def test_while_a_pod_moves_to_another_slice_it_is_in_both_and_counts_as_ready_once() -> None:
    before, after = slice_of(entry("10.0.0.1", "a", ready=False)), slice_of(entry("10.0.0.1", "a", ready=True))
    for slices in ((before, after), (after, before)):
        assert seen(*slices) == (Endpoint("10.0.0.1", 8080, 9090, State.READY, "a"),)


def test_endpoints_that_are_no_pods_count_by_their_address() -> None:
    assert [each.address for each in seen(slice_of(entry("10.0.0.1"), entry("10.0.0.2")))] == ["10.0.0.1", "10.0.0.2"]


def test_names_instead_of_addresses_are_ignored() -> None:
    assert seen(slice_of(entry("example.org", "a"), family="FQDN")) == ()


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "nonsense",
        {},
        {"addressType": ["IPv4"]},
        slice_of({"addresses": []}),
        slice_of({"addresses": None}),
        slice_of({}),
        slice_of({"addresses": [7]}),
        slice_of({"addresses": ["inference.example.org"]}),
        slice_of({"addresses": ["10.0.0.1"], "targetRef": {"name": None}}),
        slice_of({"addresses": ["10.0.0.1"], "targetRef": "pod"}),
        slice_of({"addresses": ["10.0.0.1"], "conditions": ["ready"]}),
        {"addressType": "IPv4", "endpoints": 7},
        {"addressType": "IPv4", "endpoints": [None]},
    ],
)
def test_a_slice_that_is_not_as_documented_is_a_value_error(document: Any) -> None:
    with pytest.raises(ValueError, match="Error: "):
        parse_slice(document)
