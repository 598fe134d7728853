"""Malformed requests, by the thousand, on every port: no fault of ours, JSON only, nobody waits, nobody dies."""

import concurrent.futures
import itertools
import json
import os
from functools import partial

import pytest

from tests import malformed
from tests.service.harness import Service, eventually

COUNT = int(os.environ.get("MALFORMED_REQUESTS", "2000"))
SEED = int(os.environ.get("MALFORMED_SEED", "1"))


@pytest.mark.parametrize("pod", [True, False], ids=["pod", "machine"])
def test_malformed_requests_are_answered_at_once_in_json_without_a_fault_of_ours(pod: bool) -> None:
    echo = "percore.handlers.echo:Echo"
    with Service(pod=pod, handler=echo, body_timeout=20, on_client_disconnect="finish").ready(
        workers=1 if pod else 2
    ) as service:
        before = service.workers
        for port, callers in ((service.port, 1 if pod else 8), (service.status_port, 4)):
            sent, again = itertools.tee(malformed.requests(COUNT, SEED))
            with concurrent.futures.ThreadPoolExecutor(callers) as pool:
                for data, trouble in zip(again, pool.map(partial(malformed.trouble_with, port), sent), strict=True):
                    assert not trouble, f"{trouble}; {data[:600]!r}"
        assert service.workers == before
        assert service.metric("percore_worker_restarts_total") == 0
        eventually(lambda: service.metric("percore_workers", state="free") == len(before))
        for line in service.log_path.read_text().rpartition("\n")[0].splitlines():
            assert "trace" not in json.loads(line), line
        assert not [line for line in service.log() if line["level"] in ("error", "critical")]
