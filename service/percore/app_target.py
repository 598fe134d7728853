"""The name of a WSGI app, as Gunicorn reads it: ``module``, ``module:app``, ``module:factory()``, ``module:factory("a", b=1)``.

Source: https://docs.gunicorn.org/en/stable/run.html. The settings check a name with this module, and the worker reads the name
with it. It imports no module of percore, so any module may import it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

DEFAULT = "application"
"""The app's name if only the module is given."""
MODULE = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True, slots=True)
class AppTarget:
    """A module and a name in it. ``arguments``: those of a factory; None if the name is the app itself."""

    module: str
    name: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None


def parse(text: str) -> AppTarget:
    """Read the name of an app. Raises ValueError if the text is not one."""
    module, colon, rest = text.partition(":")
    if not MODULE.fullmatch(module):
        raise ValueError(f"{module!r} is not the name of a module")
    if not colon:
        return AppTarget(module, DEFAULT, None)
    try:
        found = ast.parse(rest, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{rest!r} is neither a name nor a call of a function") from error
    try:
        return _read(module, found)
    except (TypeError, ValueError) as error:  # for example a variable, or a list as a key
        raise ValueError(f"{rest!r} is neither a name nor a call of a function with literals") from error


def _read(module: str, found: ast.expr) -> AppTarget:
    match found:
        case ast.Name(name):
            return AppTarget(module, name, None)
        case ast.Call(ast.Name(name), args, keywords):
            return AppTarget(module, name, (tuple(map(ast.literal_eval, args)), _named_values(keywords)))
    raise ValueError(f"{ast.dump(found)} is neither a name nor a call")


def _named_values(keywords: list[ast.keyword]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in keywords:
        if each.arg is None:
            raise ValueError("** is not a literal")
        found[each.arg] = ast.literal_eval(each.value)
    return found
