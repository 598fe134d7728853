"""The allocator keeps freed memory, unless the user decided otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from percore.gateway.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for each in range(20):
    pieces = [bytes(200_000) for _ in range(80)]
    del pieces
    if each == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **environ: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, env={**os.environ, **environ}, capture_output=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_pages_of_a_freed_body_are_used_again() -> None:
    assert page_faults("kept") * 10 < page_faults("default")


def test_a_setting_of_the_user_wins() -> None:
    setting = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert page_faults("kept", **setting) > 0.9 * page_faults("default", **setting)
