"""Runs ``caller.py`` in a pod, for thousands of callers, and for callers that do not connect through the API server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.harness import CALL, Release, eventually, images, kubectl

CALLER = Path(__file__).with_name("caller.py")


@dataclass(frozen=True, slots=True)
class Crowd:
    """Callers of one release. ``caller.py`` describes the plan."""

    release: Release
    name: str
    count: int
    at_once: int
    seconds: float = 0.0
    same_seconds: bool = False
    every: float = 0.0
    sizes: tuple[tuple[float, int], ...] = ((1.0, 0),)
    leaving: float = 0.0
    patience: float = 0.1
    host: str = ""
    """The host that they call; empty: the host of the release's Service."""

    def start(self) -> Crowd:
        """Begin to call."""
        kubectl("apply", "-f", "-", given=json.dumps(self._pod()))
        return self

    def done(self, seconds: float = 600) -> dict[str, Any]:
        """Wait for the last answer, and return the summary."""
        where = ("-n", self.release.namespace)

        def ended() -> str:
            phase = kubectl(*where, "get", "pod", self.name, "-o", "jsonpath={.status.phase}")
            return phase if phase in ("Succeeded", "Failed") else ""

        phase = eventually(ended, seconds, every=1)
        said = kubectl(*where, "logs", self.name)
        kubectl(*where, "delete", "pod", self.name, "--wait=false")
        assert phase == "Succeeded", said
        summary: dict[str, Any] = json.loads(said)
        print(self.name, {key: value if key != "odd" else value[:5] for key, value in summary.items()})
        return summary

    def _pod(self) -> dict[str, Any]:
        image = images()["gateway"]["image"]
        host = self.host or f"{self.release.full_name}.{self.release.namespace}.svc"
        plan = {
            "url": f"http://{host}:8080{CALL}",
            "prefix": self.name,
            "count": self.count,
            "at_once": self.at_once,
            "seconds": self.seconds,
            "same_seconds": self.same_seconds,
            "every": self.every,
            "sizes": self.sizes,
            "leaving": self.leaving,
            "patience": self.patience,
        }
        restricted = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        container = {
            "name": "caller",
            "image": f"{image['repository']}:{image['tag']}",
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", CALLER.read_text(), json.dumps(plan)],
            "securityContext": restricted,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "namespace": self.release.namespace},
            "spec": {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]},
        }
