"""The documentation site has every page, and its links lead to the same places as on GitHub.

`make lint` builds it in strict mode.
"""

import re

import pytest

from tools import docs_site, pages

REPOSITORY = "https://example.com/percore"
AT = f"v{docs_site.version()}"


def link(name: str, target: str) -> str:
    """Return the target of a page's link on the site."""
    found = re.fullmatch(r"\[text\]\((.*)\)", docs_site.rewritten(f"[text]({target})", name, REPOSITORY))
    assert found
    return found[1]


@pytest.mark.parametrize(
    ("name", "target", "found"),
    [
        ("apps.md", "handlers.md#threads-of-libraries", "handlers.md#threads-of-libraries"),
        ("apps.md", "../deploy/README.md#a-model-of-your-own", "deploying.md#a-model-of-your-own"),
        ("operations/nodes.md", "../../deploy/README.md", "../deploying.md"),
        ("operations/one-machine.md", "../../compose.yaml", f"{REPOSITORY}/blob/{AT}/compose.yaml"),
        ("README.md", "../LICENSE", f"{REPOSITORY}/blob/{AT}/LICENSE"),
        ("README.md", "../tests/e2e", f"{REPOSITORY}/tree/{AT}/tests/e2e"),
        ("README.md", "../demo", f"{REPOSITORY}/tree/{AT}/demo"),
        ("overview.md", "docs/bench/burst.svg", "bench/burst.svg"),
        ("overview.md", "docs/decisions", "decisions/README.md"),
        ("deploying.md", "../docs/operations.md#nodes", "operations.md#nodes"),
        ("values.md", "../../README.md", "deploying.md"),
        ("apps.md", "https://example.org/a", "https://example.org/a"),
        ("apps.md", "#here", "#here"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_to_the_repository_at_this_version(name: str, target: str, found: str) -> None:
    assert link(name, target) == found


def test_text_in_code_that_looks_like_a_link_is_left_alone() -> None:
    text = "`[a](../LICENSE)`\n\n```sh\n[a](../LICENSE)\n```\n"
    assert docs_site.rewritten(text, "apps.md", REPOSITORY) == text


def test_every_reader_has_a_section_that_begins_with_the_first_page_for_them_and_no_page_is_missing() -> None:
    sections = list(docs_site.navigation())
    assert [name for section in sections for name in section] == list(pages.READERS)
    first = {reader: entries[0] for section in sections for reader, entries in section.items()}
    assert (first["You call a model"], first["You operate it"]) == ("calling.md", "quickstart-kubernetes.md")
    assert first["You change the code"] == "contributing.md"
    listed = set(re.findall(r"'([^']+\.md)'", str(sections)))
    docs = docs_site.ROOT / "docs"
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - listed == {"README.md"}, (
        "the first page of the site"
    )
