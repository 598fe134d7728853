"""The checks before a version is published, and the notes of a release."""

from pathlib import Path

import pytest
from percore import __version__

from tools import release

CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2030-01-31

### Added

- A thing.

## [1.1.0] - 2030-01-01

### Fixed

- Another.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose version is 1.2.0 in all places."""
    for name, text in {
        "service/percore/__init__.py": '"""percore."""\n\n__version__ = "1.2.0"\n',
        "deploy/helm/percore/Chart.yaml": "name: percore\nversion: 1.2.0\nappVersion: 1.2.0\n",
        "CHANGELOG.md": CHANGELOG,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_notes_are_the_section_of_this_version_alone(repository: Path) -> None:
    assert release.notes("1.2.0", repository) == "### Added\n\n- A thing.\n"


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("service/percore/__init__.py", "1.2.0", "1.3.0", r"__init__.py: expected version 1\.2\.0, found 1\.3\.0"),
        ("deploy/helm/percore/Chart.yaml", "appVersion: 1.2.0", "appVersion: 1.1.0", r"Chart.yaml: .* found 1\.2\.0, 1\.1\.0"),
        ("CHANGELOG.md", "## [1.2.0] - 2030-01-31", "## Next", r"CHANGELOG.md: expected a section `## \[1\.2\.0\] - DATE`"),
        ("CHANGELOG.md", "### Added\n\n- A thing.\n", "", r"CHANGELOG.md: expected a section"),
    ],
)
def test_a_version_that_differs_in_one_place_is_not_released(
    repository: Path, name: str, before: str, after: str, message: str
) -> None:
    path = repository / name
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=message):
        release.notes("1.2.0", repository)


def test_package_and_chart_of_this_repository_have_one_version(repository: Path) -> None:
    for name in release.PLACES:
        (repository / name).write_text((release.ROOT / name).read_text())
    (repository / "CHANGELOG.md").write_text(CHANGELOG.replace("1.2.0", __version__))
    assert release.notes(__version__, repository)
