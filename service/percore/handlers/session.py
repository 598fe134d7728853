"""A SavedModel as a graph with SignatureDefs, in a session, as TensorFlow Serving loads it.

The session belongs to a graph of its own, so nothing else in the process changes to graph mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from percore.handlers import Array, Tensors, effects, runners, warmup
from percore.handlers.runners import SignatureRunner

v1 = tf.compat.v1
RESERVED = "__saved_model_"
"""The prefix of the signatures that TensorFlow itself writes. It runs them once, after a load."""
HAS_VALUE = {
    "VarHandleOp": lambda tensor: tf.raw_ops.VarIsInitializedOp(resource=tensor),
    "Variable": lambda tensor: tf.raw_ops.IsVariableInitialized(ref=tensor),
    "VariableV2": lambda tensor: tf.raw_ops.IsVariableInitialized(ref=tensor),
}
"""For each operation that holds a variable: a function that makes a tensor, which says whether the variable has a value."""


def have_values(variables: Iterable[Any]) -> dict[str, Any]:
    """Return for each variable, by the name of its operation, a tensor that says whether it has a value."""
    return {each.name: HAS_VALUE[each.type](each.outputs[0]) for each in variables}


class LoadedGraph:
    """One graph of a SavedModel in a session, with its variables, tables and assets. Raises the errors of TensorFlow."""

    def __init__(self, folder: Path, graph: Any) -> None:
        self._graph = tf.Graph()
        # Without a configuration of its own, a session has the number of threads that is set for the process.
        self._session = v1.Session(graph=self._graph)
        with self._graph.as_default():
            loaded = v1.saved_model.loader.load(self._session, list(graph.meta_info_def.tags), str(folder))
        self._definitions = {name: each for name, each in loaded.signature_def.items() if not name.startswith(RESERVED)}

    def signature_runners(self) -> dict[str, SignatureRunner]:
        """Return the runner of each signature, by name."""
        # Made once, because it holds every constant of the graph.
        library = self._graph.as_graph_def().library
        return {name: self._runner(name, definition, library) for name, definition in self._definitions.items()}

    def _runner(self, name: str, definition: Any, library: Any) -> SignatureRunner:
        signature = runners.signature_of_definition(definition)
        inputs, outputs = self._tensors(definition.inputs), self._tensors(definition.outputs)
        fetched = self._session.make_callable(outputs, list(inputs.values()))
        dtypes = {spec.name: spec.dtype for spec in signature.outputs}

        def run(given: Tensors) -> dict[str, Array]:
            found = fetched(*(given[each] for each in inputs))
            # A scalar comes as a number or as bytes. With an explicit type, numpy keeps zero bytes at the end of a string.
            return {each: np.asarray(found[each], warmup.numpy_dtype(dtype)) for each, dtype in dtypes.items()}

        nodes = (operation.node_def for operation in self._needed(name))  # one at a time: a constant may be large
        return SignatureRunner(signature, run, frozenset(effects.operations_of(nodes, library)), self)

    def without_value(self, signatures: Iterable[str]) -> list[str]:
        """Return the names of the variables that these signatures need and that have no value."""
        needed = {each.name: each for name in signatures for each in self._needed(name) if each.type in HAS_VALUE}
        with self._graph.as_default():
            checks = have_values(needed.values())
        return [name for name, has_value in self._session.run(checks).items() if not has_value]

    def _needed(self, signature: str) -> Iterator[Any]:
        """Yield the operations that compute the outputs of a signature.

        The inputs are not computed, so their operations are left out.
        """
        definition = self._definitions[signature]
        given = {each.name for each in self._tensors(definition.inputs).values()}
        waiting = [each.op for each in self._tensors(definition.outputs).values() if each.name not in given]
        entered: set[str] = set()
        while waiting:
            operation = waiting.pop()
            if operation.name not in entered:
                entered.add(operation.name)
                waiting += [*operation.control_inputs, *(each.op for each in operation.inputs if each.name not in given)]
                yield operation

    def _tensors(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the graph's tensors by name. A value that is not a single tensor is left out; its signature is not served."""
        return {name: self._graph.get_tensor_by_name(info.name) for name, info in tensors.items() if info.name}
