"""Makes a site from the pages that are written for GitHub. mkdocs calls these functions, because `mkdocs.yaml` names them.

On GitHub, each link is relative to its file. On the site, a link to a file that is not a page leads to the repository, at this
version. The navigation is that of ``docs/README.md``: a section for each reader, the first page first.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs imports this file by its path

from tools import pages  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

OUTSIDE = {
    "README.md": "overview.md",
    "deploy/README.md": "deploying.md",
    "deploy/helm/percore/README.md": "values.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside ``docs`` that are pages too, and their names on the site."""
TEXT = re.compile(r"^(?P<fence> *```+).*?^(?P=fence)$|`[^`\n]+`|(?P<open>\]\()(?P<link>[^)\s]+)\)", re.MULTILINE | re.DOTALL)
"""Matches code, which has no links, or the target of a link."""


def version() -> str:
    """Return the version of the package. The package need not be installed."""
    found = re.search(r'^__version__ = "(.+)"', (ROOT / "service/percore/__init__.py").read_text(), re.MULTILINE)
    if not found:
        raise ValueError("service/percore/__init__.py: has no __version__")
    return found[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give the site its navigation."""
    config.nav = [
        {"Start": [{"Documentation": "README.md"}, {"Overview": "overview.md"}]},
        *navigation(),
        {"Changes": "changelog.md"},
    ]
    return config


def navigation() -> Iterator[dict[str, Any]]:
    """Yield a section for each reader."""
    for reader in pages.READERS:
        entries = [_in_docs(ROOT / "docs" / name) for name in pages.of(reader)]
        yield {reader: [*entries, *({"All decisions": _decisions()} for each in entries if each == "decisions/README.md")]}


def _decisions() -> list[str]:
    return sorted(f"decisions/{path.name}" for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs``."""
    from mkdocs.structure.files import File  # noqa: PLC0415 (nothing else that imports this module needs mkdocs)

    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change every link to lead to a page of the site, or to the repository."""
    del files
    return rewritten(markdown, page.file.src_uri, str(config.repo_url))


def rewritten(markdown: str, name: str, repository: str) -> str:
    """Return the text of the page ``name`` with its links as on the site."""
    sources = {there: source for source, there in OUTSIDE.items()}
    here = ROOT / sources.get(name, f"docs/{name}")

    def replace(match: re.Match[str]) -> str:
        link = match["link"]
        if not link or re.match(r"[a-z]+:|#", link):
            return match[0]
        path, hash_, anchor = link.partition("#")
        target = Path(os.path.normpath(here.parent / path))
        inside = _in_docs(target)
        if inside:
            to = os.path.relpath(inside, Path(name).parent)
        else:
            to = f"{repository}/{'tree' if target.is_dir() else 'blob'}/v{version()}/{target.relative_to(ROOT)}"
        return f"]({to}{hash_}{anchor})"

    return TEXT.sub(replace, markdown)


def _in_docs(target: Path) -> str:
    """Return the name of a file on the site, or nothing if the site does not have it.

    A folder stands for the page that introduces it.
    """
    found = Path(os.path.normpath(target))
    source = (found / "README.md" if (found / "README.md").exists() else found).relative_to(ROOT).as_posix()
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return OUTSIDE.get(source, "")
