"""Files, headings and values that the documentation names exist. No network: links to other sites are not followed."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools import blocks, pages

ROOT = Path(__file__).resolve().parent.parent.parent
SCHEMA = json.loads((ROOT / "deploy/helm/percore/values.schema.json").read_text())
FENCE = re.compile(r"^( *)(```+)(\w*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
VALUES = "# values.yaml\n"


def documents() -> list[Path]:
    folders = ("docs", "deploy", "requirements", "tests", ".github")
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in ROOT.glob(f"{folder}/**/*.md"))])


def prose(text: str) -> str:
    """Return the text without its code."""
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors of headings, as GitHub makes them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        words = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        ends = (f"{anchor}{end}" for end in ("", *(f"-{count}" for count in range(1, 99))))
        found.add(next(each for each in ends if each not in found))
    return found


def broken(path: Path, text: str) -> Iterator[str]:
    """Yield the links of a page that lead nowhere."""
    for target in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        wrong = anchor and to.suffix == ".md" and to.exists() and anchor not in anchors(text if to == path else to.read_text())
        if wrong or not to.exists() or not to.is_relative_to(ROOT):
            yield target


def known(key: list[str]) -> bool:
    """Return whether the chart has such a value."""
    schema: dict[str, Any] = SCHEMA
    for part in key:
        below = schema.get("properties", {}).get(part) or schema.get("additionalProperties")
        if not isinstance(below, dict):
            return schema.get("type") == "object" and "properties" not in schema
        schema = below
    return True


def set_keys(text: str) -> Iterator[str]:
    """Yield the keys that code gives to Helm's ``--set``, ``--set-string`` and ``--set-json``."""
    for option in re.findall(r"--set(?:-string|-json)?[ =]('[^']*'|[^\s`]+)", text):
        for pair in re.split(r"(?<!\\),", option.strip("'")):
            yield re.split(r"=|\[\d", pair, maxsplit=1)[0]


def without_other_charts(text: str) -> str:
    """Return the text without commands that install the charts of others."""
    return re.sub(r"^helm install \S+ \S+ --repo (?:[^\n]*\\\n)*[^\n]*$", "", text, flags=re.MULTILINE)


def split(key: str) -> list[str]:
    return [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", key)]


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield list(path)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(path: Path) -> None:
    assert list(broken(path, path.read_text())) == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_value_that_a_page_sets_is_one_of_the_chart_s(path: Path) -> None:
    text = path.read_text()
    code = [found[3] for found in FENCE.findall(text)]
    keys = [split(key) for key in set_keys(without_other_charts(text))]
    keys += [key for block in code if block.startswith(VALUES) for key in leaves(yaml.safe_load(block))]
    assert [".".join(key) for key in keys if not known(key)] == []


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_diagram_s_groups_have_a_name_and_their_words_in_brackets(path: Path) -> None:
    """Mermaid draws nothing if a name has blanks or commas."""
    diagrams = "".join(found[3] for found in FENCE.findall(path.read_text()) if found[2] == "mermaid")
    groups = re.findall(r"^ *subgraph (.*)$", diagrams, re.MULTILINE)
    assert [group for group in groups if not re.fullmatch(r"\w+(\[[^\]]+\])?", group)] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](README.md#nothing)", ["README.md#nothing"]),
        ("![a](docs/bench/nothing.svg)", ["docs/bench/nothing.svg"]),
        ("[`a`](../outside.md)", ["../outside.md"]),
        ("[a](README.md#quick-start) [b](https://example.org/x.md) [c](docs)", []),
        ("`[a](nowhere.md)`\n\n```sh\n[a](nowhere.md)\n```\n", []),
        ("# One\n\n[a](#one) [b](#one-1)\n\n## One\n", []),
        ("[a](#two)\n\n```sh\n# Two\n```\n", ["#two"]),
    ],
)
def test_a_link_that_leads_nowhere_is_found(line: str, found: list[str]) -> None:
    assert list(broken(ROOT / "CHANGELOG.md", line)) == found


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_heading_is_one_line(path: Path) -> None:
    """The next line would be text of its own, which begins in the middle of a sentence."""
    lines = [*FENCE.sub("", path.read_text()).splitlines(), ""]
    assert [line for line, after in itertools.pairwise(lines) if re.match(r"#+ ", line) and after] == []


def test_a_heading_s_anchor_is_github_s() -> None:
    assert anchors("## The rule (2-4) x cores\n### `a.b`: what's it?\n") == {"the-rule-2-4-x-cores", "ab-whats-it"}


def test_a_value_the_chart_does_not_have_is_found() -> None:
    text = "`--set autoscaling.enable=false,cpu=2,env[0].name=X`, and "
    text += "--set-string 'podAnnotations.a\\.b/c=true' --set service.annotations.x=y"
    keys = [split(key) for key in set_keys(text)]
    assert keys[:3] == [["autoscaling", "enable"], ["cpu"], ["env"]]
    assert keys[3:] == [["podAnnotations", "a.b/c"], ["service", "annotations", "x"]]
    assert [known(key) for key in keys] == [False, True, True, True, True]
    assert not known(["cpu", "more"])
    assert not known(["gateway", "image", "name"])


def test_values_of_other_charts_are_not_looked_up_in_ours() -> None:
    text = "helm install a b --repo https://x \\\n  --wait \\\n  --set theirs=1\nhelm install percore folder --set ours=1\n"
    assert list(set_keys(without_other_charts(text))) == ["ours"]


def test_a_page_s_place_for_a_table_is_filled_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- a:begin -->\nold\n<!-- a:end -->\nbelow\n")
    assert blocks.filled(page, {"a": "new"}) == "above\n<!-- a:begin -->\nnew\n<!-- a:end -->\nbelow\n"
    with pytest.raises(ValueError, match="no place for b"):
        blocks.filled(page, {"b": "new"})


def test_the_index_quotes_a_page_s_title_and_first_sentence() -> None:
    text = "<!-- generated -->\n\n# Title\n\n| a |\n|---|\n\nFirst, in [some](x.md)\nwords. Second.\n"
    assert pages.introduction(text) == ("Title", "First, in some words.")
    with pytest.raises(ValueError, match="no title"):
        pages.introduction("# Title\n")


def test_the_index_has_every_page_once_and_each_reader_s_first_page_first() -> None:
    text = pages.index()
    links = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\) \|", text, re.MULTILINE)
    there = {path.relative_to(pages.DOCS).as_posix() for path in pages.DOCS.rglob("*.md")}
    wanted = {name for name in there if name != "README.md" and not re.search(r"/\d{4}-", name)}
    assert sorted(links) == sorted([*wanted, *pages.ELSEWHERE, "../CONTRIBUTING.md"])
    firsts = re.findall(r"^## (.+)\n\n.*\n.*\n\| \[[^\]]+\]\(([^)]+)\)", text, re.MULTILINE)
    assert dict(firsts) == {
        "You choose a server": "comparison.md",
        "You call a model": "calling.md",
        "You bring a model": "models.md",
        "You operate it": "quickstart-kubernetes.md",
        "You change the code": "../CONTRIBUTING.md",
    }


LEFT_OUT = {"gateway/call", "gateway/gateway_metrics", "gateway/lag", "gateway/pods", "logs", "sockets"}
"""Files of a call that are not in the page's list: constructors, one-line helpers, timers, and the steps after the answer."""


def section_of_a_call() -> tuple[str, list[str]]:
    """Return the section of the architecture page about one call, and its list of files."""
    section = (ROOT / "docs/architecture.md").read_text().partition("### One call, file by file")[2]
    return section, section.partition("```text")[2].partition("```")[0].split()


def test_a_call_goes_through_the_files_that_the_page_lists_in_their_order(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.walk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    status, seen = json.loads(done.stdout.splitlines()[0])
    assert status == "HTTP/1.1 200 OK"
    # The fake model is not one of TensorFlow, which is in handlers/runners.
    listed = [name for name in section_of_a_call()[1] if name != "handlers/runners"]
    rest = iter(seen)
    assert [name for name in listed if name not in rest] == [], "in this order"
    assert set(seen) - set(listed) <= LEFT_OUT


def test_the_page_states_the_right_number_of_files_and_moves_of_a_call() -> None:
    section, walk = section_of_a_call()
    assert [name for name in walk if not (ROOT / f"service/percore/{name}.py").exists()] == []
    table = section.partition("```text")[0]
    assert set(re.findall(r"`([\w/]+)\.py`", table)) == set(walk)
    in_the_worker = [name for name in walk if not name.startswith(("http/", "gateway/"))]
    said = re.findall(r"(\d+) files and\s+(\d+) moves", section)
    assert said == [(str(len(set(each))), str(len(each) - 1)) for each in (walk, in_the_worker)]
