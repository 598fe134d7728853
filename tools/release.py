"""Checks that a version can be released, and prints its notes: ``python -m tools.release 0.1.0``.

Needs only the standard library, so the release workflow runs it without ``.venv``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = {
    "service/percore/__init__.py": r'^__version__ = "(.+)"$',
    "deploy/helm/percore/Chart.yaml": r'^(?:version|appVersion): "?([^"\n]+)"?$',
}
"""Files that have the version, and the text around it."""


def notes(version: str, root: Path = ROOT) -> str:
    """Return the section of the changelog for this version, without its heading.

    Raises ValueError if the package, the chart or the changelog does not have this version, or if the section is empty.
    """
    for name, pattern in PLACES.items():
        found = re.findall(pattern, (root / name).read_text(), re.MULTILINE)
        if not found or set(found) != {version}:
            raise ValueError(f"{name}: expected version {version}, found {', '.join(found) or 'none'}")
    section = re.search(
        rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", (root / "CHANGELOG.md").read_text(), re.MULTILINE | re.DOTALL
    )
    if not section or not section[1].strip():
        raise ValueError(f"CHANGELOG.md: expected a section `## [{version}] - DATE` that says what changed, found none")
    return section[1].strip() + "\n"


def main() -> int:
    """Print the notes; return 1 if the version cannot be released."""
    if len(sys.argv) != 2:
        print("usage: python -m tools.release VERSION", file=sys.stderr)
        return 2
    try:
        print(notes(sys.argv[1]), end="")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
