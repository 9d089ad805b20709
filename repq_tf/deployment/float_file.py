"""`export_tflite_float`: a float file, for comparison with the integer one."""

import os
from typing import Any

from repq_tf.deployment.convolutions import CLAMPS
from repq_tf.deployment.float_layers import FLOAT_LOWERINGS, refusal
from repq_tf.deployment.fusion import Fusion, fuse
from repq_tf.deployment.lowering import Lowering
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import Graph, Node, evaluate, leaves, read_graph, read_native
from repq_tf.keras_api import keras
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.quantization.lines import is_lifted, lift
from repq_tf.quantization.splitting import split_layers
from repq_tf.reparameterization.merge import merge
from repq_tf.tflite.program import Program, Tensor
from repq_tf.tflite.writer import write


def export_tflite_float(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a float model, merged, as a float32 `.tflite` file, for comparison.

    Batch norms are folded into the convolution before them, and ReLU and ReLU6 fused into
    operators. The file's ends are called in its signature as the model's.

    Args:
        model: a float model, of our blocks and of Keras's layers for images and for
            one-dimensional features, which are images of height 1 in the file.
        path: the file to write.

    Raises:
        ValueError: the model is quantized, or has layers that no operators are known for
            (all of them are named).
        FileNotFoundError: the folder of `path` does not exist.

    Example:
        >>> repq_tf.export_tflite_float(model, "float.tflite")
    """
    path = new_file(path)
    native = read_native(model)
    for node in native.nodes.values():
        if isinstance(node.layer, Quantize) or getattr(node.layer, "weight_quantizer", None):
            raise ValueError(
                "model must be a float model; repq_tf.export_tflite writes quantized ones. "
                f"Received: {model.name!r}, whose layer {node.name!r} is quantized"
            )
    _refuse_unknown(split_layers(native))
    graph = split_layers(read_graph(merge(model)))
    if any(is_lifted(node.layer) for node in graph.nodes.values()):
        graph = lift(graph)
    write_atomically(path, write(FloatLowering(graph).run()))


def _refuse_unknown(graph: Graph) -> None:
    """Names all layers that no operators are known for, which merging leaves as they are."""
    layers = {
        node.layer.name: node.layer
        for node in graph.nodes.values()
        if not node.is_input and not isinstance(node.layer, ReparamConv)
    }
    found = [
        f"{name!r} ({getattr(layer, 'kind', type(layer).__name__)}: {reason})"
        for name, layer in layers.items()
        if not is_lifted(layer) and (reason := refusal(layer)) is not None
    ]
    if found:
        raise ValueError(
            f"model {graph.name!r} cannot be written to a float file, because of layers "
            f"{', '.join(found)}"
        )


class FloatLowering(Lowering):
    """Makes the program of a float model.

    Args:
        graph: the `Graph` of a merged model.

    Raises:
        ValueError: layers cannot be written.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, FLOAT_LOWERINGS, "float32")
        _refuse_unknown(graph)
        self._fusions, self._fused = fuse(graph)

    def run(self) -> Program:
        """Lowers every layer; returns the program."""
        outputs = leaves(evaluate(self.graph, self._feed, self._apply))
        keys, given = self.graph.input_keys, self.program.inputs
        self.program.inputs = {key: given[name] for name, key in keys.items()}
        for key, tensor in zip(self.graph.output_keys, outputs, strict=True):
            self.program.outputs[key] = tensor
        return self.program

    def fusion(self, node: Node) -> Fusion:
        """What the operator of a node does beside its layer."""
        return self._fusions.get(node.name, Fusion())

    def fused_activation(self, node: Node) -> str:
        """The option of an operator that applies the clamp behind a node."""
        return CLAMPS[self.fusion(node).activation]

    def _feed(self, node: Node) -> Tensor:
        tensor = self.inner(node.name, (None, *node.input_shape[1:]), None)
        self.program.inputs[node.name] = tensor
        return tensor

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if node.name in self._fused:
            return tensors[0]
        made = self.lower(node.layer)(self, node, tensors)
        return made if isinstance(made, Tensor) else made(None, self.program.name(node.name))
