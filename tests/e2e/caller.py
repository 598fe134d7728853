"""Callers inside the cluster: make many calls by a plan, and print the results. Needs only Python.

``python caller.py PLAN`` with JSON: ``url``; ``count`` calls, called PREFIX-0, PREFIX-1, ...; each begins ``every`` seconds
after the one before, unless ``at_once`` are open; each takes up to ``seconds``, or all take ``seconds`` if ``same_seconds`` is
true; ``sizes`` are pairs: a share of the calls, and the bytes of their bodies; ``leaving`` is the share of callers that leave
within ``patience`` seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

SECONDS = 900.0


async def call(url: str, name: str, seconds: float, size: int, leave: float | None) -> dict[str, Any]:
    """Make one call and return its result. The caller disconnects ``leave`` seconds after it has begun to send."""
    target = urlsplit(url)
    body = json.dumps({"inputs": {"seconds": [seconds]}}).ljust(size)
    head = f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nConnection: close\r\nX-Request-ID: {name}\r\n"
    began, writer = time.time(), None
    outcome: dict[str, Any] = {"id": name, "status": "left", "leaving": leave is not None, "began": began}
    try:
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        outcome |= parsed(await asyncio.wait_for(reader.read(), leave or SECONDS))
    except TimeoutError:
        pass
    except OSError as error:
        outcome["status"] = type(error).__name__
    finally:
        if writer is not None:
            writer.transport.abort()
    return outcome | {"took": time.time() - began}


def parsed(answer: bytes) -> dict[str, Any]:
    """Return status, error code and ``Retry-After``."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return {"status": "closed"}
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    code = "" if first.split()[1] == "200" else json.loads(body)["code"]
    return {"status": first.split()[1], "code": code, "retry_after": headers.get("retry-after", "")}


async def calls(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Make every call of a plan, and return the results."""
    dice, places, tasks = random.Random(plan["prefix"]), asyncio.Semaphore(plan["at_once"]), []

    shares, sizes = zip(*plan["sizes"], strict=True)

    async def one(number: int, seconds: float, size: int, leave: float | None) -> dict[str, Any]:
        async with places:
            return await call(plan["url"], f"{plan['prefix']}-{number}", seconds, size, leave)

    for number in range(plan["count"]):
        seconds = plan["seconds"] * (1 if plan["same_seconds"] else dice.random())
        [size] = dice.choices(sizes, shares)
        leave = max(0.001, dice.random() * plan["patience"]) if dice.random() < plan["leaving"] else None
        async with places:  # a call begins only when there are fewer open calls than ``at_once``
            tasks.append(asyncio.create_task(one(number, seconds, size, leave)))
        await asyncio.sleep(plan["every"])
    return await asyncio.gather(*tasks)


def main() -> None:
    """Make the calls and print a summary, and each call that was not answered 200 although its caller stayed."""
    plan = json.loads(sys.argv[1])
    host = urlsplit(plan["url"]).hostname or ""  # looked up once, so that calls begin in their order
    plan["url"] = plan["url"].replace(host, socket.gethostbyname(host), 1)
    began = time.time()
    made = asyncio.run(calls(plan))
    summary = {
        "outcomes": Counter(each["status"] for each in made),
        "left": sum(each["leaving"] for each in made),
        "slowest": max(each["took"] for each in made),
        "seconds": time.time() - began,
        "odd": [each for each in made if each["status"] != "200" and not each["leaving"]],
    }
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
