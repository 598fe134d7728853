"""Callers inside the cluster that store calls: send many calls, wait for the end of each, and print the results.

``python stored_caller.py PLAN`` with JSON: ``url`` and ``path``; ``count`` calls, ``at_once`` of them at the same time; each
takes ``seconds``; ``sizes`` are pairs: a share of the calls, and about how many bytes their bodies have. Nothing but Python is
needed.

Each call has numbers of its own, and its result must have all of them. So a byte that is lost, moved or from another call is
noticed.
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
BYTES = 10
"""How many bytes one number takes in a body."""
tried: Counter[str] = Counter()
"""Statuses and errors after which a request was sent again."""


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    """Send a request again until a gateway that can use the store answers it; return status, headers and body."""
    ends = time.monotonic() + PATIENCE
    while True:
        request = Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
        try:
            status, found, said = _asked(request)
            if status not in AGAIN:
                return status, found, said
            tried[str(status)] += 1
        except (OSError, HTTPException) as error:
            # The gateway was killed, in the middle of its answer too, or is not there yet.
            tried[type(error).__name__] += 1
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
    """Store one call, wait for its end, and return what came of it."""
    chance = random.Random(number)
    size = chance.choices(*reversed(list(zip(*plan["sizes"], strict=True))))[0]
    # A call takes as long as its largest number says: the first.
    given = [plan["seconds"] + number / 1e6, *(chance.randrange(10**6) / 1e7 for _ in range(size // BYTES))]
    body = json.dumps({"inputs": {"seconds": given}}, separators=(",", ":")).encode()
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
    right = status == 200 and json.loads(said)["outputs"] == given
    again = json.loads(ask(where)[2])["state"]
    return {
        "state": seen["state"],
        "right": right,
        "again": again == seen["state"],
        "id": seen["id"],
        "ends": [run["end"] for run in seen["runs"]],
    }


def is_right(made: dict[str, Any]) -> bool:
    """Return whether a call succeeded, was answered by exactly one of its runs, and has the right result."""
    return bool(made["state"] == "succeeded" and made["right"] and made["again"] and made["ends"].count("answered") == 1)


def main() -> None:
    """Make the calls, and print a summary and each call that did not end well."""
    plan = json.loads(sys.argv[1])
    with ThreadPoolExecutor(plan["at_once"]) as threads:
        made = list(threads.map(lambda number: call(plan, number), range(plan["count"])))
    summary = {
        "states": Counter(each["state"] for each in made),
        "ids": len({each.get("id") for each in made}),
        "ends": Counter(end for each in made for end in each.get("ends", ())),
        "tried": tried,
        "odd": [each for each in made if not is_right(each)],
    }
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
