"""Paths under `/-/` are percore's own, however they are spelt."""

import orjson
import pytest
from percore.http import own_paths


@pytest.mark.parametrize("path", ["/-/ready", "/-/", "/-/calls/1", "/%2d/ready", "/%2D%2fready"])
def test_a_path_under_the_prefix_is_percores_own(path: str) -> None:
    assert own_paths.is_reserved(path)


@pytest.mark.parametrize("path", ["/", "/-", "/-ready", "/a/-/ready", "//-/ready", "/%252d/ready", "*"])
def test_every_other_path_is_the_apps(path: str) -> None:
    assert not own_paths.is_reserved(path)


def test_ready_says_why_no_calls_are_accepted_and_live_is_200_all_the_same() -> None:
    assert own_paths.answer("GET", "/-/ready", "") == own_paths.OK
    status, headers, body = own_paths.answer("HEAD", "/%2d/ready", "the gateway is stopping")
    assert (status, orjson.loads(body)) == (503, {"error": "the gateway is stopping", "code": "not-ready"})
    assert b"Retry-After" in dict(headers)
    assert own_paths.answer("GET", "/-/live", "the gateway is stopping")[0] == 200


def test_an_unknown_path_is_404_and_a_wrong_method_is_405() -> None:
    status, _, body = own_paths.answer("GET", "/-/healthz", "")
    assert (status, orjson.loads(body)["code"]) == (404, "not-found")
    status, headers, body = own_paths.answer("POST", "/-/ready", "")
    assert (status, orjson.loads(body)["code"]) == (405, "method-not-allowed")
    assert dict(headers)[b"Allow"] == b"GET, HEAD"
