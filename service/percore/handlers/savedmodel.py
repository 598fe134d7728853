"""Loads a SavedModel of TensorFlow 1 or 2. There are two ways to load it, because neither loads every model.

The object graph comes first: this is how Python's TensorFlow loads. Without Keras 2 it cannot load a model that was compiled
with an optimizer of TensorFlow 2.0 to 2.10. The graph with its SignatureDefs comes second: this is how TensorFlow Serving loads
(``session``). It restores no variables of a Keras 3 model that ``tf.saved_model.save`` wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.saved_model.loader_impl import parse_saved_model  # reads .pb and .pbtxt, as `tf.saved_model.load` does

from percore.errors import LoadError
from percore.handlers import runners, session
from percore.handlers.runners import SignatureRunner, reason

logger = logging.getLogger(__name__)

LONGEST_LIST = 3


def read(folder: Path, title: str, tags: Collection[str]) -> dict[str, SignatureRunner]:
    """Return the runner of each signature, by name; ``title`` names the model in the log.

    ``tags`` choose the graph if the file has several. Raises LoadError with the reasons of both ways if both fail.
    """
    graph = chosen(parse_saved_model(str(folder)).meta_graphs, tags)
    failures: list[str] = []
    for way, load in WAYS.items():
        try:
            found = load(folder, graph)
        except Exception as error:
            logger.debug("%s is not loaded by its %s", title, way, exc_info=True)
            failures.append(f"its {way} fails: {reason(error)}")
        else:
            logger.info("%s is loaded by its %s%s", title, way, "".join(f", because {each}" for each in failures))
            return found
    raise LoadError("; ".join(failures))


def chosen(graphs: Iterable[Any], tags: Collection[str]) -> Any:
    """Return the ``MetaGraphDef`` to serve.

    If there is only one graph, that one. Otherwise the only graph with exactly these tags, or else the only graph with these
    and more tags. Raises ValueError if there is no such graph.
    """
    graphs = list(graphs)
    wanted = set(tags)
    exact = [each for each in graphs if set(each.meta_info_def.tags) == wanted]
    others = [each for each in graphs if set(each.meta_info_def.tags) > wanted]
    for found in (graphs, exact, others):
        if len(found) == 1:
            return found[0]
    there = "; ".join(",".join(each.meta_info_def.tags) or "none" for each in graphs)
    raise ValueError(
        f"it has {len(graphs)} graphs, with the tags {there}: PERCORE_MODEL_TAGS={','.join(tags)!r} must be the tags of one "
        "of them"
    )


def _objects(folder: Path, graph: Any) -> dict[str, SignatureRunner]:
    """Load the object graph. Raises ValueError if a variable has no value, and every error of TensorFlow."""
    loaded = tf.saved_model.load(str(folder), list(graph.meta_info_def.tags))
    found = {name: _runner(each, graph.signature_def[name], loaded) for name, each in loaded.signatures.items()}
    served = [loaded.signatures[name] for name, each in found.items() if not each.why_not_served()]
    require_values(name for function in served for name in _without_value(function))
    return found


def _without_value(function: Any) -> Iterator[str]:
    """Yield the names of the variables that a function reads and that have no value."""
    yield from (each.name.removesuffix(":0") for each in function.graph.variables if not each.is_initialized())
    # Reference variables of TensorFlow 1 are only operations in the graph, and not objects.
    if within := [each for each in function.graph.get_operations() if each.type in session.HAS_VALUE]:
        with function.graph.as_default():
            checks = session.have_values(within)
        yield from (name for name, has_value in function.prune([], checks)().items() if not has_value)


def _runner(function: Any, definition: Any, loaded: Any) -> SignatureRunner:
    keywords = {}
    for key, spec in function.structured_input_signature[1].items():
        # TensorFlow keeps two names of an input that is not an identifier, such as "my-input": the name itself, and a changed
        # one. `key` is one of them, and `spec.name` is the other. Which of the two `key` is depends on the version of
        # TensorFlow, 1 or 2. The order of the inputs differs too, so match by name.
        keyword = key if key in function.function_type.parameters else spec.name
        keywords[key if key in definition.inputs else spec.name or key] = (keyword, spec.dtype)
    # TensorFlow 2 forgets a signature's method name when it loads a model: it is in the definition alone.
    return runners.runner_of(function, keywords, runners.signature_of_definition(definition), loaded)


def _session(folder: Path, graph: Any) -> dict[str, SignatureRunner]:
    """Load the graph into a session. Raises ValueError if a variable has no value, and every error of TensorFlow."""
    loaded = session.LoadedGraph(folder, graph)
    found = loaded.signature_runners()
    require_values(loaded.without_value(name for name, each in found.items() if not each.why_not_served()))
    return found


def require_values(missing: Iterable[str]) -> None:
    """Raise ValueError if there are variables without a value: ``missing`` has their names."""
    names = sorted(set(missing))
    if names:
        more = f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
        raise ValueError(f"it restores no value for the variables {', '.join(names[:LONGEST_LIST])}{more}")


WAYS: dict[str, Callable[[Path, Any], dict[str, SignatureRunner]]] = {
    "object graph": _objects,
    "graph with signatures": _session,
}
"""In the order in which they are tried."""
