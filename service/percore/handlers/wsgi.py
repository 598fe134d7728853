"""A user's own WSGI app: finds what ``PERCORE_APP`` names.

Imported in a worker only, after the fork. It imports no web framework: an app brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from percore.errors import LoadError
from percore.handlers import custom

_MISSING = object()
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[Any]]


def load(target: str) -> Application:
    """Import the app ``target``, as ``module:app``, or make it, as ``module:factory()``.

    Raises LoadError with one sentence that says what is missing, or what raised.
    """
    module, _, name = target.partition(":")
    wanted_by = f"app {target}"
    attribute = name.removesuffix("()")
    found = getattr(custom.import_module(wanted_by, module), attribute, _MISSING)
    if found is _MISSING:
        raise LoadError(f"{wanted_by}: module {module!r} has no {attribute!r}")
    if not callable(found):
        raise LoadError(f"{wanted_by}: {attribute!r} is not callable; it is {_article(found)}")
    if attribute != name:
        try:
            found = found()
        except (Exception, SystemExit) as error:
            raise LoadError(f"{wanted_by}: {name} raised {custom.told(error)}") from error
        if not callable(found):
            raise LoadError(f"{wanted_by}: {name} must return a WSGI app, which is callable; it returned {_article(found)}")
    app: Application = found
    return app


def _article(value: object) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
