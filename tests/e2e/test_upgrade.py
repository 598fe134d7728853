"""From one revision of the chart to the next and back, with running and queued calls. And after an uninstall, no object is
left.

No chart has been released yet. So the revision before this one is the chart before its last change in the history. It must fit
the images under test: if its gateway was still HAProxy, or if there is no history, the chart itself takes its place. It gets
another version, another image, other limits and another pod template, so an upgrade replaces every pod, of the gateway too.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

from tests.e2e import objects
from tests.e2e.harness import (
    CALL,
    CHART,
    HELM,
    ROOT,
    SLEEP,
    SMALL,
    WITHOUT_AUTOSCALING,
    Call,
    Release,
    eventually,
    merged,
    run,
    sleeping,
)

FITS = {"gateway.yaml": "args: [gateway]", "inference.yaml": "args: [status-server]", "_helpers.tpl": "PERCORE_ANSWER_TIMEOUT"}
"""By template: a text that the chart must have, so that the processes of the images under test start."""
BEFORE = {
    "image": {"repository": "localhost/percore/own"},
    "timeouts": {"run": 100, "queue": 200},
    "podAnnotations": {"revision": "before"},
    "gateway": {"podAnnotations": {"revision": "before"}},
}
NOW = {
    "image": {"repository": "localhost/percore/inference"},
    "timeouts": SMALL["timeouts"],
    "podAnnotations": {"revision": "now"},
    "gateway": {"podAnnotations": {"revision": "now"}},
}


def previous(folder: Path) -> Path:
    """Return the chart before the last change of its templates; the present chart if the images under test do not fit the old
    one.
    """
    chart = str(CHART.relative_to(ROOT))
    known = run("git", "-C", str(ROOT), "log", "-2", "--format=%H", "--", f"{chart}/templates").split()
    if len(known) < 2 or not all(
        said in run("git", "-C", str(ROOT), "show", f"{known[1]}:{chart}/templates/{template}")
        for template, said in FITS.items()
    ):
        print("upgrades from this chart to itself: there is no earlier one for these images")
        return CHART
    print(f"upgrades from the chart of {known[1]}")
    run("sh", "-c", f"git -C {shlex.quote(str(ROOT))} archive {known[1]} {chart} | tar -x -C {shlex.quote(str(folder))}")
    return folder / chart


def packaged(version: str, folder: Path) -> str:
    run(HELM, "package", str(previous(folder)), "--version", version, "--destination", str(folder))
    return str(folder / f"percore-{version}.tgz")


class Traffic:
    """A call that runs on the only pod, and one that is queued for it. Both are in flight when the release changes."""

    def __init__(self, gateway: str) -> None:
        self.running = Call(gateway + CALL, sleeping(30), seconds=150).start()
        time.sleep(2)
        self.queued = Call(gateway + CALL, sleeping(5), seconds=150).start()
        time.sleep(1)

    def statuses(self) -> list[int]:
        return [call.done().status for call in (self.running, self.queued)]


def test_an_upgrade_and_a_rollback_cut_no_call(empty_namespace: str, tmp_path: Path) -> None:
    chart = packaged("0.0.1", tmp_path)
    values = merged({**WITHOUT_AUTOSCALING, **SMALL, "handler": SLEEP}, BEFORE)
    release = Release("moving", empty_namespace, values, chart)
    try:
        release.install()
        pods = [*release.wait(1), *release.wait(1, "gateway")]
        with release.forwarded(f"pod/{pods[1]}") as gateway:
            traffic = Traffic(gateway)
            release.chart = str(CHART)
            release.upgrade(NOW)
            meanwhile = _call_a_successor_of(release, pods[1])
            assert [*traffic.statuses(), meanwhile.done().status] == [200] * 3
        after = [*release.wait(1), *release.wait(1, "gateway")]
        assert set(pods).isdisjoint(after), "nothing was replaced, so nothing could be cut"

        with release.forwarded(f"pod/{after[1]}") as gateway:
            traffic = Traffic(gateway)
            run(HELM, "rollback", release.name, "1", "-n", empty_namespace)
            meanwhile = _call_a_successor_of(release, after[1])
            assert [*traffic.statuses(), meanwhile.done().status] == [200] * 3
        last = [*release.wait(1), *release.wait(1, "gateway")]
        assert set(after).isdisjoint(last)
        [pod] = release.pods("inference")
        assert pod["metadata"]["annotations"]["revision"] == "before"
        history = json.loads(run(HELM, "history", release.name, "-n", empty_namespace, "-o", "json"))
        assert [each["chart"] for each in history][:1] == [each["chart"] for each in history][-1:] == ["percore-0.0.1"]
    finally:
        release.uninstall()


def _call_a_successor_of(release: Release, gateway: str) -> Call:
    """Call while everything changes, through a gateway of the new revision, as a new caller would."""
    new = eventually(lambda: [pod for pod in release.ready("gateway") if pod != gateway])
    with release.forwarded(f"pod/{new[0]}") as successor:
        return Call(successor + CALL, sleeping(1), seconds=150).start().done()


def test_uninstalling_leaves_nothing_behind(empty_namespace: str) -> None:
    """The release has had calls, deletion costs of pods and recorded series.

    The test does not delete the namespace, so only the uninstall removes objects.
    """
    before = objects.of(empty_namespace)
    scaled = objects.knows("servicemonitors.monitoring.coreos.com")
    values = {"monitoring": {"enabled": scaled}, "autoscaling": {"enabled": scaled, "spareReplicas": 1}}
    release = Release("leaving", empty_namespace, merged({**SMALL, "handler": SLEEP}, values))
    release.install()
    release.wait(1)
    with release.forwarded() as gateway:
        assert Call(gateway + CALL, sleeping(1), seconds=60).start().done().status == 200
    there = objects.of(empty_namespace) - before
    assert any(each.startswith("validatingadmissionpolicy") for each in there), there
    assert any(each.startswith("networkpolicy") for each in there), there
    run(HELM, "uninstall", release.name, "-n", empty_namespace)
    assert objects.settled(empty_namespace, before, seconds=90) == set()
