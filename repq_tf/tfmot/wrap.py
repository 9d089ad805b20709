"""From our quantized model to what TFMOT wraps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from repq_tf.graphs import Graph, Node, copy_call, copy_layer, read_graph, rebuild
from repq_tf.keras_api import Layer, Tensor, keras
from repq_tf.layers import Quantize, QuantizedAdd, QuantizedMean, ReparamConv
from repq_tf.layers.freezing import copy_trainable
from repq_tf.quantization.grids import ON_INPUT_GRID, known_name, quantized_node
from repq_tf.tfmot.configs import OutputQuantizeConfig, ReparamQuantizeConfig
from repq_tf.tfmot.quantizer import LSQQuantizer
from repq_tf.tfmot.requirements import QuantizeLayer


def to_tfmot(model: keras.Model, calibrated: bool) -> tuple[keras.Model, dict[str, Any]]:
    """Takes the quantizers out of a quantized model.

    Args:
        model: what `repq_tf.quantize` returns.
        calibrated: whether its activations' steps are set.

    Returns:
        `(model, layer_quantize_map)`, as a layout transform returns them: the model with
        blocks that run on their merged kernel, and the config of each layer that TFMOT shall
        wrap. Quantizers that round several tensors, and the input's, are `QuantizeLayer`s.
    """
    wrapping = _Wrapping(read_graph(model), calibrated)
    return rebuild(wrapping.graph, wrapping.apply, name=model.name), wrapping.configs


class _Wrapping:
    """Makes the layers of the new model while the quantized one's graph is walked."""

    def __init__(self, graph: Graph, calibrated: bool) -> None:
        self.graph = graph
        self.calibrated = calibrated
        self.configs: dict[str, Any] = {}
        self.copies: dict[Any, Layer] = {}

    def apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Applies what a node becomes; steps travel as None."""
        layer = node.layer
        if type(layer) is Quantize:
            return self._quantize(node, args[0]), None
        if isinstance(layer, ReparamConv):
            return self._block(node, args[0]), None
        if isinstance(layer, QuantizedAdd):
            return self._sum(layer, args[:2]), None
        if isinstance(layer, QuantizedMean):
            self._set(layer.name, layer)
            mean = keras.layers.GlobalAveragePooling2D(
                keepdims=layer.keepdims, name=layer.name, dtype=layer.dtype_policy
            )
            return mean(args[0]), None
        if isinstance(layer, Quantize | ON_INPUT_GRID):
            kind = type(layer).__name__.removeprefix("Quantized")
            raise ValueError(
                f"layer {node.name!r} ({kind}): TFMOT has no wrapper that computes it as the "
                "integer runtime does; quantize the model with repq_tf.quantize"
            )
        quantizer = self._output_quantizer(node)
        if quantizer is not None:
            self._set(known_name(self.graph, node), quantizer)
        known = dataclasses.replace(node, name=known_name(self.graph, node))
        return copy_call(known, args, kwargs, self.copies)

    def _quantize(self, node: Node, x: Tensor) -> Tensor:
        """A quantizer of its own, unless the layer before is wrapped with it."""
        layer = node.layer
        if not self._stands_alone(node):
            return x
        if layer.name not in self.copies:
            options = {"tensors": len(self._calls(layer)), **self._start(layer)}
            quantizer = LSQQuantizer(layer.bits, layer.signed, per_image=True, **options)
            self.copies[layer.name] = QuantizeLayer(quantizer, name=layer.name)
        return self.copies[layer.name](x)

    def _stands_alone(self, node: Node) -> bool:
        source = quantized_node(self.graph, node)
        return len(self._calls(node.layer)) > 1 or source.is_input

    def _calls(self, layer: Layer) -> list[Node]:
        return [node for node in self.graph.nodes.values() if node.layer is layer]

    def _output_quantizer(self, node: Node) -> Quantize | None:
        """The `Quantize` layer that a node's wrapper takes over, or None."""
        readers = self.graph.consumers(node.name)
        for reader in readers:
            if type(reader.layer) is Quantize and not self._stands_alone(reader):
                return reader.layer
        return None

    def _block(self, node: Node, x: Tensor) -> Tensor:
        layer, name = node.layer, known_name(self.graph, node)
        block = copy_layer(layer, name, weight_bits=None, merged=True)
        y = block(x)
        copy_parts(layer, block)
        quantizer = self._output_quantizer(node)
        if layer.weight_quantizer is not None:
            self._set(
                name,
                quantizer,
                ReparamQuantizeConfig,
                weight_bits=layer.weight_bits,
                per_channel=layer.per_channel,
                calibrated=self.calibrated,
                weight_levels=layer.weight_levels,
                wide_tap=layer.wide_tap,
            )
        elif quantizer is not None:
            self._set(name, quantizer)
        return y

    def _sum(self, layer: QuantizedAdd, terms: Sequence[Tensor]) -> Tensor:
        name, activation = layer.name, keras.activations.serialize(layer.activation)
        y = keras.layers.Add(name=name, dtype=layer.dtype_policy)(list(terms))
        if activation != "linear":
            name = f"{name}_{activation}"
            y = keras.layers.Activation(activation, name=name, dtype=layer.dtype_policy)(y)
        self._set(name, layer)
        return y

    def _set(
        self,
        name: str,
        quantizer: Quantize | None,
        kind: type[OutputQuantizeConfig] = OutputQuantizeConfig,
        **options: Any,
    ) -> None:
        """Notes the config of a layer; `quantizer` is its output's, or None."""
        options["activation_bits"] = None
        if quantizer is not None:
            options.update(
                activation_bits=quantizer.bits,
                signed=quantizer.signed,
                **self._start(quantizer),
            )
        self.configs[name] = {"quantize_config": kind(**options)}

    def _start(self, quantizer: Quantize) -> dict[str, Any]:
        """The step a quantizer starts with."""
        if quantizer.fixed_step is not None:
            return {"step": quantizer.fixed_step, "learned": False}
        return {"step": float(quantizer.step) if self.calibrated else None}


def copy_parts(source: ReparamConv, target: ReparamConv) -> None:
    """Gives a block the branches and the restored batch norm of an equal one, as frozen."""
    copy_trainable(source, target)  # first: tf_keras orders weights by it
    target.expression.set_weights(source.expression.get_weights())
    if target.restored is not None:
        assert source.restored is not None  # of an equal block
        target.restored.set_weights(source.restored.get_weights())
