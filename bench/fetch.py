"""``percore fetch`` beside ``rclone copy``, from the same store on this machine: ``python -m bench.fetch``. Some minutes.

The store is ``rclone serve s3``, which cannot send parts of a file; with ``--versitygw PATH`` also versitygw, which can. Store
and client share the cores, so their processor time is the limit, as it is with a network that is faster than the cores.
``rclone copy`` computes no SHA-256, so there are rows for it with ``sha256sum`` after it, and for percore without the hash.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from harness.service import ROOT, eventually, free_port

RCLONE = str(Path(sys.executable).parent / "rclone")
KEY, SECRET = "key-of-the-bench", "secret-of-the-bench"
ROUNDS = 3
MEGA = 1_000_000
SHAPES = {"one file of 1 GB": (1, 1000 * MEGA), "2,000 files of 200 kB": (2000, MEGA // 5)}
UNHASHED = """
import sys
from percore.fetch import transfer
transfer._File.hash_part = lambda *_: None
from percore.cli import main
main(sys.argv[1:])
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """One fetch, in seconds."""

    seconds: float
    client: float
    """Processor time of the client."""
    server: float
    """Processor time of the store."""


def _rclone(endpoint: str, bucket: str, folder: Path) -> list[str]:
    return [RCLONE, "copy", "--config", "", f':s3,provider=Other,env_auth,endpoint="{endpoint}":{bucket}', str(folder)]


def _then_hashed(endpoint: str, bucket: str, folder: Path) -> list[str]:
    copy = shlex.join(_rclone(endpoint, bucket, folder))
    return ["sh", "-c", f"{copy} && find {shlex.quote(str(folder))} -type f -exec sha256sum {{}} + >/dev/null"]


def _percore(_endpoint: str, bucket: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "percore", "fetch", f"s3://{bucket}", str(folder)]


def _unhashed(_endpoint: str, bucket: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", UNHASHED, "fetch", f"s3://{bucket}", str(folder)]


WAYS: dict[str, Callable[[str, str, Path], list[str]]] = {
    "rclone copy": _rclone,
    "rclone copy, then sha256sum": _then_hashed,
    "percore fetch": _percore,
    "percore fetch without the hash": _unhashed,
}


@contextlib.contextmanager
def _store(command: Callable[[int], list[str]]) -> Iterator[tuple[str, int]]:
    """Start a store; yield its address and its process."""
    port = free_port()
    process = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    return (
        subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], capture_output=True, check=False).returncode == 0
    )


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _measured(command: list[str], endpoint: str, server: int) -> Fetched:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PERCORE_", "AWS_", "RCLONE_"))}
    environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    environ |= {"PERCORE_FETCH_ENDPOINT": endpoint}
    served, used, began = _processor_seconds(server), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    client = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Fetched(seconds, client, _processor_seconds(server) - served)


def _compare(name: str, bucket: str, store: Callable[[int], list[str]], folder: Path) -> None:
    """Fetch each way in turns; print the median of each, and its speed beside ``rclone copy``."""
    found: dict[str, list[Fetched]] = {way: [] for way in WAYS}
    with _store(store) as (endpoint, pid):
        for turn in range(ROUNDS + 1):
            for way, command in WAYS.items():
                target = folder / "target"
                one = _measured(command(endpoint, bucket, target), endpoint, pid)
                shutil.rmtree(target)
                if turn:  # the first one warms the store
                    found[way].append(one)
    middle = {way: sorted(all_of, key=lambda one: one.seconds)[ROUNDS // 2] for way, all_of in found.items()}
    for way, one in middle.items():
        ratio = middle["rclone copy"].seconds / one.seconds
        print(f"| {name} | {way} | {one.seconds:.2f} s | {one.client:.2f} s | {one.server:.2f} s | {ratio:.2f} |", flush=True)


def _fill(folder: Path, files: int, size: int) -> None:
    """Write a model of so many files, each of ``size`` bytes that cannot be compressed."""
    (folder / "digits/1/assets").mkdir(parents=True)
    (folder / "digits/1/saved_model.pb").touch()
    dice = random.Random(0)
    for number in range(files):
        with (folder / f"digits/1/assets/{number}").open("wb") as file:
            for at in range(0, size, 16 * MEGA):
                file.write(dice.randbytes(min(16 * MEGA, size - at)))


def main() -> int:
    """Measure and print a table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description="Measure percore fetch beside rclone copy.")
    parser.add_argument("--versitygw", metavar="PATH", help="also fetch from versitygw, an S3 store that can send parts")
    parser.add_argument("--folder", metavar="PATH", help="a folder with room for three gigabytes, for the files of the bench")
    given = parser.parse_args()
    print(machine.described(), "\n")
    print("| store, model | way | time | client's processor time | store's | speed / rclone copy |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        buckets = Path(temporary) / "buckets"
        serve = [RCLONE, "serve", "s3", "--config", "", "--auth-key", f"{KEY},{SECRET}"]
        stores = {"rclone serve s3": lambda port: [*serve, "--addr", f"127.0.0.1:{port}", str(buckets)]}
        if given.versitygw:
            gateway = [given.versitygw, "--access", KEY, "--secret", SECRET, "--quiet"]
            stores["versitygw"] = lambda port: [*gateway, "--port", f"127.0.0.1:{port}", "posix", str(buckets)]
        for number, (shape, (files, size)) in enumerate(SHAPES.items()):
            _fill(buckets / f"shape{number}", files, size)
            for name, store in stores.items():
                _compare(f"{name}, {shape}", f"shape{number}", store, Path(temporary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
