"""Writes the table of ingress controllers for the guide, from what the chart itself renders for them.

``ingress-controllers.yaml`` in the chart says it once. The templates fill it with the numbers of a release, and this module
with those of the default values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "percore"
HEADS = (
    "in front, and `ingress.controller`",
    "default",
    "kind",
    "what the chart adds, with the default timeouts",
    "what else to set",
)


def table() -> str:
    """Return the table, as Markdown."""
    lines = [HEADS, ["---"] * len(HEADS), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows() -> list[list[str]]:
    """Return the cells of each controller, below HEADS."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    longest = sum(values["timeouts"][name] for name in ("queue", "run", "body", "answer")) + 60
    return [_row(name, each, longest, values["maxBodyBytes"]) for name, each in controllers().items()]


def controllers() -> dict[str, dict[str, Any]]:
    """Return what the chart knows of each controller."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((CHART / "ingress-controllers.yaml").read_text())
    return found


def _row(name: str, each: dict[str, Any], longest: int, body: int) -> list[str]:
    added = [f"{kind.title()}: `{key}: {_yaml(value)}`" for kind in ("ingress", "service") for key, value in each[kind].items()]
    call = min(longest, each.get("most", longest))
    cells = ["; ".join(added) or "nothing", each["besides"]]
    filled = [cell.replace("CALL", str(call)).replace("BODY", str(body)).replace("NAME", "percore") for cell in cells]
    return [f"[{each['title']}]({each['source']}), `{name}`", each["default"], each["kind"], *filled]


def _yaml(value: str) -> str:
    """Return a value of an annotation as YAML needs it to be a string."""
    return f'"{value}"' if value in ("CALL", "BODY") else f"'{value}'" if value.startswith("{") else value
