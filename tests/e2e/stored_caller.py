"""Callers inside the cluster that store calls: send many calls, wait for the end of each, and print the results.

``python stored_caller.py PLAN`` with JSON: ``url`` and ``path``; ``count`` calls, ``at_once`` of them at the same time; each
takes ``seconds``; ``sizes`` are pairs: a share of the calls, and the bytes of their bodies. Needs only Python. Each call has an
input of its own, so that its result cannot be confused with that of another call.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ENDS = {"succeeded", "failed", "cancelled", "expired"}
PATIENCE = 900.0
AGAIN = {429, 503}


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """Send a request again until a gateway that can use the store answers it; return status, headers and body."""
    ends = time.monotonic() + PATIENCE
    while True:
        request = Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
        try:
            status, found, said = _asked(request)
            if status not in AGAIN:
                return status, found, said
        except (OSError, HTTPException):
            pass  # the gateway was killed, perhaps in the middle of its answer, or has not started yet
        if time.monotonic() > ends:
            raise TimeoutError(url)
        time.sleep(0.2)


def _asked(request: Request) -> tuple[int, Any, bytes]:
    """Send a request once, and read its whole answer, whatever its status is."""
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()


def call(plan: dict[str, Any], number: int) -> dict[str, Any]:
    """Store one call, wait for its end, and return the result."""
    size = random.Random(number).choices(*reversed(list(zip(*plan["sizes"], strict=True))))[0]
    given = plan["seconds"] + number / 1e6
    body = json.dumps({"inputs": {"seconds": [given]}}).ljust(size).encode()
    headers = {"Prefer": "respond-async", "Idempotency_Key": f"{plan['prefix']}-{number}", "Percore_Max_Runs": "10"}
    status, found, said = ask(plan["url"] + plan["path"], body, **headers)
    if status != 202:
        return {"state": f"refused {status}", "said": said[:200].decode(errors="replace")}
    where = plan["url"] + found["Location"]
    while True:
        status, _, said = ask(where, Prefer="wait=20")
        if status != 200:
            return {"state": f"lost {status}", "id": where}
        seen = json.loads(said)
        if seen["state"] in ENDS:
            break
    status, _, said = ask(where + "/result")
    right = status == 200 and json.loads(said)["outputs"] == [given]
    again = json.loads(ask(where)[2])["state"]
    return {
        "state": seen["state"],
        "right": right,
        "again": again == seen["state"],
        "id": seen["id"],
        "runs": len(seen["runs"]),
    }


def main() -> None:
    """Make the calls, and print a summary and each call that did not end well."""
    plan = json.loads(sys.argv[1])
    with ThreadPoolExecutor(plan["at_once"]) as threads:
        made = list(threads.map(lambda number: call(plan, number), range(plan["count"])))
    summary = {
        "states": Counter(each["state"] for each in made),
        "ids": len({each.get("id") for each in made}),
        "reruns": sum(each.get("runs", 1) > 1 for each in made),
        "odd": [each for each in made if not (each["state"] == "succeeded" and each["right"] and each["again"])],
    }
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
