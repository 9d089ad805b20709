"""Graphs: a model as plain data, read, evaluated, and made into a model again."""

from repq_tf.graphs.foreign import read_native, register_conversion
from repq_tf.graphs.functions import layer_of_function
from repq_tf.graphs.graph import (
    Graph,
    Node,
    Tensor,
    free_name,
    leaves,
    map_leaves,
    map_tensors,
    pairs,
    replace_tensors,
    tensors_of,
)
from repq_tf.graphs.operations import OperationLayer, per_channel
from repq_tf.graphs.reading import read_graph
from repq_tf.graphs.rewriting import copy_call, copy_layer, copy_state, rebuild
from repq_tf.graphs.running import evaluate
from repq_tf.graphs.sharing import calls_together, shared_calls

__all__ = [
    "Graph",
    "Node",
    "OperationLayer",
    "Tensor",
    "calls_together",
    "copy_call",
    "copy_layer",
    "copy_state",
    "evaluate",
    "free_name",
    "layer_of_function",
    "leaves",
    "map_leaves",
    "map_tensors",
    "pairs",
    "per_channel",
    "read_graph",
    "read_native",
    "rebuild",
    "register_conversion",
    "replace_tensors",
    "shared_calls",
    "tensors_of",
]
