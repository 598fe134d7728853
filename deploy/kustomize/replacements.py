"""Finds the texts that name the namespace: Kustomize knows `metadata.namespace`, and not queries, expressions or variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

DELIMITERS = ('"', ":", ".", " ", "/")
SET_BY_KUSTOMIZE = {("metadata", "namespace")}
"""What Kustomize changes by itself, beside the namespace of subjects."""
SOURCE = {"kind": "Deployment", "name": "percore-gateway", "fieldPath": "metadata.namespace"}
Path = tuple[str, ...]


def replacements(objects: list[dict[str, Any]], namespace: str) -> str:
    """Return Kustomize's replacements for objects that were rendered for a namespace. No other word in them may contain its
    name.
    """
    targets: list[dict[str, Any]] = [target for each in objects for target in _targets(each, namespace)]
    # Last, because the others find their object by its kind and name.
    targets.sort(key=lambda target: target["fieldPaths"] == ["metadata.name"])
    return str(yaml.safe_dump([{"source": dict(SOURCE), "targets": targets}], sort_keys=False, width=200))


def _targets(document: dict[str, Any], namespace: str) -> Iterator[dict[str, Any]]:
    named = {"kind": document["kind"], "name": document["metadata"]["name"].replace(namespace, SOURCE["name"].split("-")[0])}
    for path, text in _texts(document, (), namespace):
        if namespace not in text or path in SET_BY_KUSTOMIZE or path[0] == "subjects":
            continue
        for options in _places(text, namespace, f"{named['kind']} {named['name']}: {'.'.join(path)}"):
            yield {"select": dict(named), "fieldPaths": [".".join(path)], **({"options": options} if options else {})}


def _places(text: str, namespace: str, where: str) -> list[dict[str, Any]]:
    """Return the places of the namespace in a text, as options of Kustomize.

    Each place is a piece between delimiters. Without options it is the whole text.
    """
    if text == namespace:
        return [{}]
    for delimiter in DELIMITERS:
        found = [place for place, piece in enumerate(text.split(delimiter)) if piece == namespace]
        if len(found) == text.count(namespace):
            return [{"delimiter": delimiter, "index": place} for place in found]
    raise ValueError(f"{where}: Kustomize cannot put another namespace in here, no delimiter sets it apart: {text}")


def _texts(value: Any, path: Path, namespace: str) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _texts(each, (*path, f"[{key}]" if "." in key or "/" in key else key), namespace)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            # An entry is found by its name, because the order may change. If the name itself contains the namespace, the name
            # changes too, so the entry is found by its index.
            named = isinstance(each, dict) and namespace not in each.get("name", namespace)
            yield from _texts(each, (*path, f"[name={each['name']}]" if named else str(place)), namespace)
    elif isinstance(value, str):
        yield path, value
