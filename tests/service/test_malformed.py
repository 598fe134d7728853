"""Thousands of malformed requests on every port: each gets a JSON error at once, and no process dies."""

import concurrent.futures
import itertools
import json
import os
from functools import partial

import pytest

from harness.service import Service, eventually
from tests import malformed
from tests.stored_client import leaked, unfinished_calls

COUNT = int(os.environ.get("MALFORMED_REQUESTS", "2000"))
SEED = int(os.environ.get("MALFORMED_SEED", "1"))


@pytest.mark.parametrize("pod", [True, False], ids=["pod", "machine"])
def test_malformed_requests_are_answered_at_once_in_json_without_a_fault_of_ours(pod: bool) -> None:
    echo = "percore.handlers.echo:Echo"
    with Service(pod=pod, handler=echo, body_timeout=20, on_client_disconnect="finish").ready(
        workers=1 if pod else 2
    ) as service:
        before = service.workers
        hidden = b"" if pod else stored_call(service)
        for port, callers in ((service.port, 1 if pod else 8), (service.status_port, 4)):
            secret = hidden if port == service.port else b""  # operators see a list of calls
            made = malformed.requests(COUNT, SEED)
            if secret:  # as many again to the routes of stored calls alone
                made = itertools.chain(made, malformed.requests(COUNT, SEED, of=malformed.STORED))
            sent, again = itertools.tee(made)
            with concurrent.futures.ThreadPoolExecutor(callers) as pool:
                for data, trouble in zip(
                    again, pool.map(partial(malformed.trouble_with, port, hidden=secret), sent), strict=True
                ):
                    assert not trouble, f"{trouble}; {data[:600]!r}"
        assert service.workers == before
        assert service.metric("percore_worker_restarts_total") == 0
        eventually(lambda: service.metric("percore_workers", state="free") == len(before))
        for line in service.log_path.read_text().rpartition("\n")[0].splitlines():
            assert "trace" not in json.loads(line), line
        assert not [line for line in service.log() if line["level"] in ("error", "critical")]
        if not pod:
            eventually(lambda: not unfinished_calls(service))
            assert not leaked(service)


def stored_call(service: Service) -> bytes:
    """Store a call and return its id."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": "another"}
    receipt = service.post("/v1/models/default:predict", {"inputs": {"x": 1}}, headers=headers)
    assert receipt.status_code == 202
    return str(receipt.json()["id"]).encode()
