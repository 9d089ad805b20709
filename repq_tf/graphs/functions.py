"""Functions that are given to layers, such as `keras.ops.gelu`, as layers of one meaning."""

from collections.abc import Callable
from typing import Any

from repq_tf.graphs.operations import OperationLayer, as_layer
from repq_tf.keras_api import LEGACY, Layer, keras


def layer_of_function(function: Callable[[Any], Any]) -> Layer | None:
    """The layer that computes what a function of one tensor does.

    The function is called with a symbol, which tells what operation comes out; nothing is
    concluded from values.

    Args:
        function: as an activation of Keras.

    Returns:
        A layer; None where the function is more than one operation, or one that no layer means
        the same as, and always in tf_keras, whose operations leave no trace.
    """
    if LEGACY or isinstance(function, Layer):  # which would note the call
        return None
    x = keras.KerasTensor((None, 2))
    try:
        history = function(x)._keras_history
    except Exception:  # whatever a function of numbers alone makes of a symbol
        return None
    operation = history.operation
    if isinstance(operation, Layer):
        return None  # it has a state that a copy would not
    arguments = operation._inbound_nodes[history.node_index].arguments
    if [id(tensor) for tensor in arguments.keras_tensors] != [id(x)]:
        return None
    shape_of = {id(x): tuple(x.shape)}
    layer, args, _ = as_layer(
        operation, arguments.args, arguments.kwargs, lambda value: shape_of.get(id(value))
    )
    alone = not isinstance(layer, OperationLayer) and len(args) == 1 and args[0] is x
    return layer if alone else None
