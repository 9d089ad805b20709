"""Shapes of a model's tensors, for models of any input size too."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from repq_tf.arguments import fitting_shape
from repq_tf.graphs import Graph, Node, evaluate
from repq_tf.keras_api import LEGACY, Layer, Tensor, dtype_name, keras


def output_shapes(
    graph: Graph, input_shape: Sequence[int] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every node's first output, without the batch.

    Args:
        graph: the `Graph` of a model.
        input_shape: the shape of the input without the batch, for a model that leaves a size
            open.

    Returns:
        `{node name: shape}`.

    Raises:
        ValueError: a size is unknown, or `input_shape` does not fit the model.
    """
    sizes = _input_shapes(graph, input_shape)
    return _traced(graph, sizes) if LEGACY else _specified(graph, sizes)


def _input_shapes(graph: Graph, given: Sequence[int] | None) -> dict[str, tuple[int, ...]]:
    inputs = [node for node in graph.nodes.values() if node.is_input]
    declared = {node.name: node.input_shape[1:] for node in inputs}
    if given is None:
        for name, shape in declared.items():
            if None in shape:
                raise ValueError(
                    f"input_shape must be given for a model of any input size, such as "
                    f"input_shape=(720, 1280, {shape[-1]}). Received: None; input {name!r} "
                    f"is {shape}"
                )
        return declared
    if len(inputs) != 1:
        raise ValueError(
            f"input_shape goes with models of one input. Received: {given}, and the model has "
            f"{len(inputs)}"
        )
    ((name, shape),) = declared.items()
    return {name: fitting_shape(shape, given)}


def _specified(graph: Graph, sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Keras 3's symbolic shapes; no layer notices that it was asked."""

    def feed(node: Node) -> Tensor:
        return keras.KerasTensor((None, *sizes[node.name]), dtype_name(node.layer.output))

    def call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
        return layer.compute_output_spec(*args, **kwargs)

    return _collect(graph, feed, call)


def _traced(graph: Graph, sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The shapes of a TensorFlow function; tf_keras does not tell those of layers alone."""
    import tensorflow as tf

    shapes = {}

    def run(**tensors: Tensor) -> int:
        shapes.update(_collect(graph, lambda node: tensors[node.name], _call))
        return 0

    specs = {
        node.name: tf.TensorSpec((None, *sizes[node.name]), node.layer.output.dtype)
        for node in graph.nodes.values()
        if node.is_input
    }
    tf.function(run, autograph=False).get_concrete_function(**specs)
    return shapes


def _call(layer: Layer, *args: Any, **kwargs: Any) -> Any:
    return layer(*args, **kwargs)


def _collect(
    graph: Graph, feed: Callable[[Node], Tensor], call: Callable[..., Any]
) -> dict[str, tuple[int, ...]]:
    """Walks the graph on symbolic tensors and notes shapes."""
    shapes = {}

    def note(node: Node, outputs: Any) -> tuple[Tensor, ...]:
        outputs = tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)
        shapes[node.name] = tuple(outputs[0].shape[1:])
        return outputs

    evaluate(
        graph,
        lambda node: note(node, feed(node)),
        lambda node, args, kwargs: note(node, call(node.layer, *args, **kwargs)),
    )
    return shapes
