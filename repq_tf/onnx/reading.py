"""Reading `.onnx` files: their nodes, grids and ends."""

import collections
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

from repq_tf.keras_api import Array, Shape

# Nodes that only move images' axes, or nothing.
_MOVES = ("Transpose", "Identity")


def read(path: str | os.PathLike[str]) -> tuple[bytes, Any]:
    """The bytes of an `.onnx` file, and the model with the shapes of all its tensors.

    Raises:
        ValueError: it is not a whole ONNX file, or the package `onnx` is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError(
            f"{path} is not a TFLite file, and ONNX files are read by the package onnx; "
            'pip install "repq_tf[onnx]"'
        )
    import onnx

    with open(path, "rb") as file:
        content = file.read()
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        return content, onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # whatever damaged bytes make the parser do
        raise ValueError(
            f"{path} is neither a TFLite nor a whole ONNX file: {error}"
        ) from error


def count_operators(model: Any) -> dict[str, int]:
    """The nodes of a model by kind, with their counts."""
    return dict(collections.Counter(node.op_type for node in model.graph.node))


class Graph:
    """What a model's nodes say of tensors.

    Args:
        model: an `onnx.ModelProto`, with the shapes of its tensors.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        self._onnx, graph = onnx, model.graph
        self.nodes = list(graph.node)
        self.inputs, self.outputs = list(graph.input), list(graph.output)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        self._types = {value.name: value.type.tensor_type for value in values}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = collections.defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)

    def weights(self, name: str) -> tuple[Array | None, Array | None, int | None]:
        """The numbers, steps and bits of an operator's constant; None where there are none."""
        node = self.source(name)
        stored, steps = (name, None) if node is None else node.input[:2]
        values = self.constant(stored)
        found = None if steps is None else self.constant(steps)
        return values, found, None if values is None else self.bits(stored)

    def constant(self, name: str) -> Array | None:
        """The values of a constant, or None."""
        tensor = self._constants.get(name)
        return None if tensor is None else self._onnx.numpy_helper.to_array(tensor)

    def bits(self, name: str) -> int | None:
        """Of the numbers of a tensor or a constant; None for those that are not quantized."""
        known = self._types.get(name)
        kind = self._constants[name].data_type if known is None else known.elem_type
        types = self._onnx.TensorProto
        return {types.INT4: 4, types.INT8: 8, types.UINT8: 8}.get(kind)

    def shape(self, name: str) -> Shape:
        """Of a tensor, images as Keras has them, with None for what is open."""
        sizes = tuple(
            size.dim_value if size.HasField("dim_value") else None
            for size in self._types[name].shape.dim
        )
        ends = {value.name for value in (*self.inputs, *self.outputs)}
        if len(sizes) == 4 and name not in ends:
            return (sizes[0], *sizes[2:], sizes[1])
        return sizes

    def source(self, name: str) -> Any:
        """The DequantizeLinear that makes a tensor, behind what moves it; or None."""
        node = self.maker.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.maker.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def target(self, name: str) -> Any:
        """The QuantizeLinear that rounds a tensor, behind what moves it; or None."""
        for node in self._behind(name):
            if node.op_type == "QuantizeLinear":
                return node
        return None

    def _behind(self, name: str) -> Iterator[Any]:
        for node in self.readers[name]:
            yield node
            if node.op_type in _MOVES:
                yield from self._behind(node.output[0])


def describe(model: Any) -> dict[str, list[dict[str, Any]]]:
    """What goes in and out of a model, as `repq_tf.tflite.reading.describe` says it.

    Numbers are float32; `scale` and `zero_point` are of the grid behind an input, and before
    an output.
    """
    graph = Graph(model)

    def end(value: Any, node: Any) -> dict[str, Any]:
        grid = [None, None] if node is None else [graph.constant(k) for k in node.input[1:3]]
        scale, zero = grid
        return {
            "name": value.name,
            "type": "float32",
            "shape": list(graph.shape(value.name)),
            "scale": None if scale is None else float(scale),
            "zero_point": None if zero is None else int(zero),
        }

    return {
        "inputs": [end(value, graph.target(value.name)) for value in graph.inputs],
        "outputs": [end(value, graph.source(value.name)) for value in graph.outputs],
    }
