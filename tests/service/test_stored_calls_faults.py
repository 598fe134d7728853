"""Stored calls under faults: full disks, folders that are gone, hostile bodies, and headers of apps that meet those of ours."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa
from percore.gateway.store import records
from percore.gateway.store.database import Database
from percore.gateway.store.records import NewCall
from percore.gateway.store.schema import REQUEST

from tests.service.harness import FAULTY, Service, answer_of, eventually
from tests.service.test_stored_calls import ASYNC, PREDICT, Stored, journalled

FEW_BYTES = 40_000
"""No file of the gateway may be longer: the database's log is longer already, so each write fails as on a full disk."""


def fill_disk(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FEW_BYTES, resource.RLIM_INFINITY))


def empty_disk(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_large_result_waits_for_a_disk_that_is_full_and_is_not_computed_again() -> None:
    stored = journalled()
    with stored.service.ready() as service:
        path = stored.send(n=7, sleep=1.0, fill=1_500_000)
        eventually(lambda: service.in_flight("executing") == 1)
        fill_disk(service.gateway)
        eventually(lambda: [line for line in stored.lines() if line[0] == "end"])
        eventually(lambda: service.log("stored calls: disk"))
        assert stored.status(path)["state"] == "running"
        full = service.post(PREDICT, {"inputs": {"n": 8}}, headers=ASYNC)
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")
        empty_disk(service.gateway)
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["answered"])
        assert stored.result(path).json()["outputs"]["fill"] == [7] * 1_500_000
        service.until(executing=0, queued=0)


def test_a_disk_that_is_full_for_longer_than_a_lease_ends_no_run() -> None:
    stored = journalled()
    service = stored.service
    service.environ["LEASE_SECONDS"] = "3"
    service.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'dying'}:{service.environ.get('PYTHONPATH', '')}"
    with service.ready():
        path = stored.send(n=7, sleep=6.0)
        eventually(lambda: service.in_flight("executing") == 1)
        fill_disk(service.gateway)
        time.sleep(4)
        empty_disk(service.gateway)
        found = stored.ended(path)
        assert (found["state"], [run["end"] for run in found["runs"]]) == ("succeeded", ["answered"])


def test_without_its_folder_no_receipt_is_given() -> None:
    with Service(handler=FAULTY).ready() as service:
        Stored(service).send(sleep=0)
        shutil.rmtree(service.environ["XDG_STATE_HOME"])
        answer = service.post(PREDICT, {"inputs": {"sleep": 0}}, headers=ASYNC)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert answer.headers["Retry-After"]
        assert service.call(sleep=0).status_code == 200
