"""Parts of hand-written pages that are generated: tables from measurements and from formulas, between two comments.

``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` each stand on a line of their own; the text between them is generated.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import queueing, waits
from bench.report import table
from deploy.helm import ingress_table
from tools import burst_picture as picture

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "docs/bench"
RESULTS, WAITS, BURST = BENCH / "results.md", BENCH / "waits.json", BENCH / "burst.json"
COMPUTING, WAITING = "Calls that compute", "The same with calls that wait instead of compute"
SHOWN = ("**percore**", "1 worker x 10 threads", "gevent 8 x 8", "2 x cores", "4 x cores")
SHORT_TIMEOUT = "gevent 4 x 4, timeout shorter"
LIMITS = """[All measurements](docs/bench/results.md), also of calls that wait instead of compute: there threads win, and
percore is the wrong choice."""
SERVERS = (1, 2, 4, 8, 16)
LOADS = (0.5, 0.7, 0.8, 0.9, 0.95)
PODS = (1, 2, 4, 8, 11, 16)
CALL_MINUTES = 10
MAY_WAIT_LONG = 0.05


def filled(path: Path, blocks: Mapping[str, str]) -> str:
    """Return the page with these blocks in their places; raise ValueError if a place is missing."""
    text = path.read_text()
    for name, content in blocks.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        head, found_begin, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{path.name}: no place for {name}")
        text = f"{head}{begin}{content}\n{end}{tail}"
    return text


def readme() -> str:
    """Return README.md."""
    return filled(ROOT / "README.md", {"bench": pictures()})


def sizing() -> str:
    """Return docs/operations/sizing.md."""
    blocks: Mapping[str, Callable[[], str]] = {"waits": formula, "measured": measured, "capacity": capacity, "rule": rule}
    return filled(ROOT / "docs/operations/sizing.md", {name: block() for name, block in blocks.items()})


def load_balancers() -> str:
    """Return docs/operations/load-balancers.md."""
    return filled(ROOT / "docs/operations/load-balancers.md", {"controllers": ingress_table.table()})


def handlers() -> str:
    """Return docs/handlers.md."""
    return filled(ROOT / "docs/handlers.md", {"processes": processes()})


def models() -> str:
    """Return docs/models.md."""
    return filled(ROOT / "docs/models.md", {"keras": keras_kinds()})


def keras_kinds() -> str:
    """Return a table of the kinds of Keras models that the tests load.

    Each row is the docstring of the function that makes the kind: the model, and after a colon more about it.
    """
    tree = ast.parse((ROOT / "tests/keras_models.py").read_text())
    kinds = [each for each in tree.body if isinstance(each, ast.FunctionDef) and ast.unparse(each.returns or each) == "Kind"]
    rows = [(ast.get_docstring(kind) or "").rstrip(".").partition(": ") for kind in kinds]
    return "\n".join(["| model | note |", "| --- | --- |", *(f"| {model} | {note} |" for model, _, note in rows)])


def burst() -> str:
    """Return docs/bench/burst.svg."""
    return picture.drawn(json.loads(BURST.read_text()))


# --- lists from tests


def processes() -> str:
    """Return a list of the ways to start processes that a handler may use: those that the tests use."""
    tree = ast.parse((ROOT / "tests/service/process_handlers.py").read_text())
    [handler] = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "Processes"]
    methods = [each for each in handler.body if isinstance(each, ast.FunctionDef)]
    ways = [(ast.get_docstring(each) or "").partition(": ") for each in methods]
    return table(["way", "what is tested"], [[way, what.strip().rstrip(".")] for way, colon, what in ways if colon])


# --- measurements


def pictures() -> str:
    """Return README's pictures, and the most important rows of the measurements."""
    section = _section(COMPUTING)
    [intro] = re.findall(r"^.+? alone on one core\.", "\n".join(section), re.MULTILINE)
    return "\n\n".join(
        [
            f"**Without percore.** {intro} One bar for each call, dark while it runs:",
            "![Without percore all calls run at once, and each takes as long as all of them together](docs/bench/trouble.svg)",
            "**With percore.** As many calls run as there are cores, each as fast as alone. The others are queued, in order:",
            "![With percore as many calls run as there are cores, each as fast as alone](docs/bench/cure.svg)",
            f"**On a cluster**, a pod for each call. {picture.described(json.loads(BURST.read_text()))}:",
            "![A burst of calls on a cluster, and the pods that start for it](docs/bench/burst.svg)",
            "Usual set-ups with TensorFlow's default threads, and percore:",
            _shown_rows(section),
            LIMITS,
        ]
    )


def _shown_rows(section: Sequence[str]) -> str:
    heads, *rows = _table(section)
    columns = [heads.index(name) for name in ("set-up", "run / alone, mean", "first answer", "last answer", heads[-1])]
    shown = [_row(rows, name) for name in (*SHOWN, SHORT_TIMEOUT)]
    return table([heads[column] for column in columns], [[row[column] for column in columns] for row in shown])


def rule() -> str:
    """Return the effect of the rule "(2-4) x cores" on calls that compute and on calls that wait."""
    computing, waiting = _table(_section(COMPUTING)), _table(_section(WAITING))
    names = ("**percore**", "2 x cores", "4 x cores", "11 sync workers")
    rows = []
    for name in names:
        busy, idle = _row(computing[1:], name), _row(waiting[1:], name)
        values = [busy[computing[0].index(head)] for head in ("run / alone, mean", "first answer", "last answer")]
        rows.append([busy[0], *values, *(idle[waiting[0].index(head)] for head in ("first answer", "last answer"))])
    heads = ["set-up", "computing: run / alone", "first answer", "last answer", "waiting: first answer", "last answer"]
    return table(heads, rows)


def measured() -> str:
    """Return the measured waits in the real queue, beside those of the formula."""
    found = waits.read(WAITS)
    rows = []
    for each in found.loads:
        expected = queueing.equal_runs(found.workers, each.load)
        row = [_times(expected.mean), _times(each.mean), _share(expected.long), _share(each.long)]
        rows.append([_share(each.load), str(each.calls), *row])
    heads = ["load", "calls", "mean wait: formula", "measured", "longer than one run: formula", "measured"]
    return f"{found.workers} workers, {found.run:g} s a call, on {found.machine.split(',')[0]}:\n\n{table(heads, rows)}"


def _section(title: str) -> list[str]:
    """Return the lines below a heading of the measurements."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", RESULTS.read_text(), re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"{RESULTS.name}: no section {title}")
    return found[1].splitlines()


def _table(section: Sequence[str]) -> list[list[str]]:
    """Return the first table's heads, and its rows."""
    heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section if line.startswith("|")]
    return [heads, *rows]


def _row(rows: Sequence[list[str]], name: str) -> list[str]:
    """Return the first row of a set-up. If it has two rows, the first is that with TensorFlow's default threads."""
    return next(row for row in rows if row[0].startswith(name))


# --- formulas


def formula() -> str:
    """Return mean waits by load and cores, for calls of equal length and for calls of different length."""
    rows = [
        [
            _share(load),
            *(
                f"{_times(queueing.equal_runs(c, load).mean)} to {_times(queueing.exponential_runs(c, load).mean)}"
                for c in SERVERS
            ),
        ]
        for load in LOADS
    ]
    return table(["load", *(f"{servers} core{'s' if servers > 1 else ''}" for servers in SERVERS)], rows)


def capacity() -> str:
    """Return how many calls an hour a number of pods can take, if only a small share of calls may wait long."""
    rows = []
    for pods in PODS:
        load = queueing.load_for_share(pods, MAY_WAIT_LONG)
        rows.append([str(pods), _share(load), str(int(pods * load * 60 / CALL_MINUTES)), str(pods * 60 // CALL_MINUTES)])
    heads = ["pods", "load, at most", f"calls per hour, each of {CALL_MINUTES} minutes", "if they came one after another"]
    return table(heads, rows)


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value * 100:.0f} %"
