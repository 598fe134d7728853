"""Side effects of a signature, read from its graph before it runs.

Imports no TensorFlow: graphs and definitions of operations come as protocol buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
"""Operations that call a Python function of the program that wrote the model. The function is in no file."""

HARMLESS = frozenset(
    {
        *("VarHandleOp", "ReadVariableOp", "VarIsInitializedOp", "VariableShape", "ResourceGather", "ResourceGatherNd"),
        *("Variable", "VariableV2", "IsVariableInitialized", "DisableCopyOnRead", "_ReadVariablesOp"),
        *(
            "HashTable",
            "HashTableV2",
            "MutableHashTable",
            "MutableHashTableV2",
            "AnonymousHashTable",
            "AnonymousMutableHashTable",
        ),
        *("LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2"),
        *("LookupTableExport", "LookupTableExportV2"),
        *("StatefulPartitionedCall", "If", "Case", "While", "RemoteCall"),
        *("CheckNumerics", "CheckNumericsV2", "ReduceDataset", "TensorDataset", "TensorSliceDataset", "RangeDataset"),
        *("Assert", "Print", "PrintV2", "Timestamp", "_Arg", "_Retval"),
        *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal"),
        *("RandomShuffle", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "Multinomial", "RandomCrop"),
        *("SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"),
        *("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "XlaLaunch"),
        *("RefIdentity", "RefSwitch", "RefMerge", "RefEnter", "RefExit", "RefNextIteration", "RefSelect"),
    }
)
"""TensorFlow marks these operations as stateful, or they take a reference. But they change nothing that outlives the call."""
PREFIXES = ("TensorArray", "Stack")
"""If the name of an operation begins with one of these, its state ends with the call."""


def operations(graph: Any) -> set[str]:
    """Return the names of all operations that a ``GraphDef`` can run, including those of the functions that it calls."""
    return operations_of(graph.node, graph.library)


def operations_of(nodes: Iterable[Any], library: Any) -> set[str]:
    """Return the names of all operations that these nodes of a graph can run. The functions of the graph are in ``library``."""
    functions = {each.signature.name: each.node_def for each in library.function}
    found: set[str] = set()
    entered: set[str] = set()
    waiting: list[Iterable[Any]] = [nodes]
    while waiting:
        for node in waiting.pop():
            found.add(node.op)
            for name in {node.op, *_called(node)} & functions.keys() - entered:
                entered.add(name)
                waiting.append(functions[name])
    return found - functions.keys()


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        for each in value.list.func:
            yield each.name


def changing(names: Iterable[str], definition: Callable[[str], Any]) -> list[str]:
    """Return those of the operations that may change something that outlives a call, sorted.

    ``definition`` returns an operation's ``OpDef``, or None. TensorFlow does not say whether an operation reads or writes. So
    an operation counts as writing if it is stateful, takes a reference or is not known, unless it is listed above.
    """
    return sorted(name for name in names if not _is_harmless(name, definition(name)))


def _is_harmless(name: str, definition: Any) -> bool:
    if name in HARMLESS or name.startswith(PREFIXES):
        return True
    return definition is not None and not definition.is_stateful and not any(each.is_ref for each in definition.input_arg)
