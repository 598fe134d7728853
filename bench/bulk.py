"""Table 3: 16 MB of float32 to the handler and back, in each form that a protocol has for tensors. The handler echoes it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson
from percore.handlers import Array

from bench import client, servers
from bench.bursts import run_seconds
from bench.machine import cores, pinned

MEGABYTES = 16
REPEATS = 5
HEADER = "Inference_Header_Content_Length"


@dataclass(frozen=True, slots=True)
class Bulk:
    """One row."""

    name: str
    request_megabytes: float
    """The size of the request on the wire."""
    seconds: float
    """Seconds from the first byte sent to the last byte received: the best of several attempts."""
    run: float
    """The worker's part: from the whole request to the head of the answer, in seconds."""
    megabytes_per_second: float
    """Counts the tensor itself, once in each direction."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to send a tensor and to ask for the answer."""

    name: str
    message: bytes


def measure(megabytes: int = MEGABYTES) -> list[Bulk]:
    """Measure each way, with one worker on one core and the client on another."""
    core, other = cores()[0], cores()[-1]
    tensor = np.random.default_rng(1).normal(size=megabytes << 18).astype(np.float32)
    limits = {"handler": "percore.handlers.echo:Echo", "max_body_bytes": 1 << 30}
    with pinned([core]), servers.percore(1, **limits) as service, pinned([other]):
        return [_row(service.port, way, tensor) for way in ways(tensor)]


def ways(tensor: Array) -> Iterator[Way]:
    """Yield each way to send a tensor."""
    tensor_of = {"name": "x", "datatype": "FP32", "shape": list(tensor.shape)}
    head = {
        "inputs": [{**tensor_of, "parameters": {"binary_data_size": tensor.nbytes}}],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    types = {"Content_Type": "application/octet-stream", HEADER: str(len(text))}
    yield Way("Open Inference Protocol, binary", client.request(V2, text + tensor.tobytes(), **types))
    options = orjson.OPT_SERIALIZE_NUMPY
    yield Way(
        "Open Inference Protocol, JSON",
        client.request(V2, orjson.dumps({"inputs": [{**tensor_of, "data": tensor}]}, option=options)),
    )
    yield Way("TensorFlow Serving, JSON", client.request(V1, orjson.dumps({"inputs": {"x": tensor}}, option=options)))


V1 = "/v1/models/default:predict"
V2 = "/v2/models/default/infer"


def _row(port: int, way: Way, tensor: Array) -> Bulk:
    best = min((timed(port, way.message) for _ in range(REPEATS)), key=lambda each: each[0])
    seconds, run = best
    return Bulk(way.name, len(way.message) / 1e6, seconds, run, 2 * tensor.nbytes / 1e6 / seconds)


def timed(port: int, message: bytes) -> tuple[float, float]:
    """Call once; return the seconds of the whole call and those of the worker's part."""
    began = time.perf_counter()
    reply = client.ask(port, message)
    took = time.perf_counter() - began
    if reply.status != 200:
        raise ConnectionError(f"status {reply.status}: {bytes(reply.body[:200])!r}")
    return took, run_seconds(reply.headers["server-timing"])
