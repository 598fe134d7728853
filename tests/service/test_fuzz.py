"""Fuzzing by the service's own OpenAPI document: every answer is documented, and no process dies."""

import os
import subprocess
import sys
from pathlib import Path

from harness.service import Service

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
CONFORMANCE = ("status_code", "content_type", "response_headers", "response_schema")
CHECKS = ",".join(["not_a_server_error", *(f"{each}_conformance" for each in CONFORMANCE)])


def test_a_minute_of_fuzzing_finds_no_undocumented_answer_and_no_worker_dies(repository: Path, tmp_path: Path) -> None:
    # `burn` is left out: a large number of steps computes for hours, as it should.
    served = tmp_path / "models"
    served.mkdir()
    for name in ("digits", "tf1", "tf2", "keras"):
        (served / name).symlink_to(repository / name)
    with Service(model_repository=served, body_timeout=5).ready(workers=2) as service:
        before = service.workers
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", service.url("/openapi.json")]
        options = ["--checks", CHECKS, "--max-examples", "10000", "--seed", "1", "--max-time"]
        stored = ["--header", "Prefer: respond-async, wait=1", "--include-path-regex", "(:predict|/infer|calls)"]
        for more in ([str(SECONDS)], [str(SECONDS // 3), *stored]):
            fuzzing = subprocess.run([*command, *options, *more], check=False, capture_output=True, text=True, cwd=tmp_path)
            assert fuzzing.returncode == 0, fuzzing.stdout[-6000:] + fuzzing.stderr[-2000:]
        assert service.workers == before
        assert service.metric("percore_worker_restarts_total") == 0
        assert service.metric("percore_calls_total") > 100
        assert service.get("/v1/calls?limit=1").json()["calls"], "no call was stored"
