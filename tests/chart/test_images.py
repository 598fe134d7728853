"""The Dockerfile and what goes into the images. That they run is what the e2e tests show."""

import re
import subprocess
import sys
from pathlib import Path

from tests.chart.harness import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(lock: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return dict(found)


def test_the_dockerfile_has_nothing_that_hadolint_would_warn_of() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_gateway_has_no_tensorflow_and_the_same_versions_as_the_service() -> None:
    gateway, runtime = pins("gateway.txt"), pins("runtime.txt")
    assert not gateway.keys() & {"tensorflow-cpu", "tensorflow", "keras", "numpy", "gunicorn"}
    shared = gateway.keys() & runtime.keys()
    assert {"prometheus-client", "orjson"} <= shared
    assert {name: gateway[name] for name in shared} == {name: runtime[name] for name in shared}


def test_the_gateway_is_one_python_process_behind_an_init_that_passes_signals_on() -> None:
    gateway = stages()["gateway"]
    assert 'ENTRYPOINT ["tini", "--", "python", "-P", "-m", "percore"]' in gateway
    assert 'CMD ["gateway"]' in gateway
    assert "apt-get" not in gateway, "it needs no package beyond those of the base"


def stages() -> dict[str, str]:
    """Return the text of each stage of the Dockerfile, by its name."""
    texts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {text.splitlines()[0].split(" AS ")[1]: text for text in texts}


def test_every_image_that_runs_is_without_a_name_for_its_user_and_without_root() -> None:
    for target in ("inference", "gateway"):
        assert "USER 65532:65532" in stages()[target]
    assert "USER" not in stages()["demo"], "it keeps that of inference"


def test_the_three_lines_of_the_readme_are_those_that_are_tried() -> None:
    readme = (ROOT / "deploy/README.md").read_text()
    script = (ROOT / "tests/e2e/images").read_text()
    assert "ENV PERCORE_HANDLER=fortune:Fortune" in readme
    assert "ENV PERCORE_HANDLER=fortune:Fortune" in script
