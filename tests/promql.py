"""Finds the series that queries read, by Prometheus' own grammar."""

from __future__ import annotations

from typing import NamedTuple

import promql_parser


class Selector(NamedTuple):
    """One series, or several, that a query reads."""

    name: str
    labels: dict[str, str]
    text: str


def selectors(query: str) -> list[Selector]:
    """Return the series that a query reads; raise ValueError if it cannot be parsed."""
    found: list[Selector] = []

    def take(expr: promql_parser.Expr) -> None:
        if isinstance(expr, promql_parser.VectorSelector):
            labels = {each.name: each.value for each in expr.matchers.matchers}
            found.append(Selector(expr.name or labels.pop("__name__"), labels, str(expr.prettify())))

    promql_parser.walk(promql_parser.parse(query), take)
    return found
