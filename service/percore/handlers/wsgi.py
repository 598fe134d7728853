"""A user's own WSGI app: imports the app that ``PERCORE_APP`` names.

Imported in a worker only, after the fork. It imports no web framework: an app brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from percore import app_target
from percore.errors import LoadError
from percore.handlers import custom

_MISSING = object()
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[Any]]


def load(target: str) -> Application:
    """Import the app that ``target`` names, or call the factory that makes it; see ``percore.app_target``.

    Raises LoadError with one sentence: it names the missing part, or the code that raised an error.
    """
    named = app_target.parse(target)
    wanted_by = f"app {target}"
    found = getattr(custom.import_module(wanted_by, named.module), named.name, _MISSING)
    if found is _MISSING:
        raise LoadError(f"{wanted_by}: module {named.module!r} has no {named.name!r}")
    if not callable(found):
        raise LoadError(f"{wanted_by}: {named.name!r} is not callable; it is {_article(found)}")
    if named.arguments is not None:
        call = target.partition(":")[2]
        given, given_by_name = named.arguments
        try:
            found = found(*given, **given_by_name)
        except (Exception, SystemExit) as error:
            raise LoadError(f"{wanted_by}: {call} raised {custom.error_line(error)}") from error
        if not callable(found):
            raise LoadError(f"{wanted_by}: {call} must return a WSGI app, which is callable; it returned {_article(found)}")
    app: Application = found
    return app


def _article(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
