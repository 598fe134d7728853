"""The chart twice in one release, as a dependency under two aliases, and without network policies."""

from __future__ import annotations

from pathlib import Path

import requests
import yaml

from tests.e2e.harness import (
    CALL,
    CHART,
    HELM,
    SECONDS,
    SLEEP,
    SMALL,
    WITHOUT_AUTOSCALING,
    Release,
    images,
    kubectl,
    merged,
    run,
    sleeping,
)

ALIASES = ("small", "large")


def test_two_aliases_in_one_release_serve_and_share_nothing(namespace: str, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts/percore").symlink_to(CHART)
    dependencies = [{"name": "percore", "version": "*", "alias": alias} for alias in ALIASES]
    head = {"apiVersion": "v2", "name": "ml", "version": "1.0.0", "dependencies": dependencies}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(head))
    each = merged({**WITHOUT_AUTOSCALING, **SMALL, "handler": SLEEP, "networkPolicy": {"enabled": False}}, images())
    command = [HELM, "upgrade", "--install", "ml", str(tmp_path), "-n", namespace, "--values", "-"]
    try:
        run(*command, given=yaml.safe_dump(dict.fromkeys(ALIASES, each)))
        assert kubectl("-n", namespace, "get", "networkpolicies", "-l", "app.kubernetes.io/instance=ml", "-o", "name") == ""
        for alias in ALIASES:
            kubectl("-n", namespace, "rollout", "status", f"deployment/ml-{alias}-gateway")
            with Release("ml", namespace).forwarded(f"service/ml-{alias}") as gateway:
                assert requests.post(gateway + CALL, json=sleeping(0), timeout=SECONDS).status_code == 200
        for alias in ALIASES:
            selector = f"app.kubernetes.io/name={alias},app.kubernetes.io/component=inference"
            [pod] = kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "name").split()
            assert len(Release("ml", namespace).calls([pod])) == 1
    finally:
        run(HELM, "uninstall", "ml", "-n", namespace, "--ignore-not-found")
