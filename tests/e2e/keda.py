"""Helpers for tests of KEDA: the state of the metric in KEDA, and the wanted numbers of pods of a release."""

from __future__ import annotations

import json
import threading
import time
from typing import Self

from tests.e2e.harness import Release, kubectl


def health(release: Release) -> str:
    """Return KEDA's state of the metric: Happy, or Failing; empty before its first read."""
    name = f"{release.full_name}-inference"
    document = json.loads(kubectl("-n", release.namespace, "get", "scaledobject", name, "-o", "json"))
    found = [each["status"] for each in document.get("status", {}).get("health", {}).values()]
    return str(found[0]) if found else ""


class Watch:
    """Records the changes of the Deployment's ``replicas``: the numbers, and the times in seconds from the beginning."""

    def __init__(self, release: Release) -> None:
        self._release = release
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.steps: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            now = self._release.replicas()
            if not self.steps or self.steps[-1][1] != now:
                self.steps.append((round(time.monotonic() - self._began, 1), now))
            time.sleep(0.2)
