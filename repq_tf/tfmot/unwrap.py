"""From a model that TFMOT wrapped to the equal one of our layers, which deployment takes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from repq_tf.graphs import Graph, Node, copy_call, copy_layer, copy_state, read_graph, rebuild
from repq_tf.keras_api import Layer, Tensor, Variable, keras
from repq_tf.layers import Quantize, QuantizedAdd, QuantizedMean, ReparamConv
from repq_tf.layers.stock import copy_stock, stock_block
from repq_tf.quantization.grids import OPERATOR
from repq_tf.quantization.operators import FUSED, activation_name
from repq_tf.quantizers import LSQ
from repq_tf.tfmot.configs import LSQQuantizeConfig, OutputQuantizeConfig, kernel_name
from repq_tf.tfmot.quantizer import LSQQuantizer
from repq_tf.tfmot.requirements import QuantizeLayer, tfmot_keras
from repq_tf.tfmot.wrap import copy_parts


def from_tfmot(model: keras.Model) -> keras.Model:
    """Returns the quantized model of our layers that equals a TFMOT-trained one.

    It has the same branches, batch norms and steps, and its inference is the integer
    runtime's. `repq_tf.export_tflite`, `check_parity` and `merge` call this themselves.

    Args:
        model: a model from `quantize_apply` whose quantizers are all `LSQQuantizer`s.

    Returns:
        An uncompiled `keras.Model`; `model` itself if TFMOT has wrapped nothing in it.

    Raises:
        ValueError: a layer has a quantizer or a config that is not one of
            `repq_tf.tfmot` (it is named).
    """
    graph = read_graph(model)
    if not any(isinstance(node.layer, _WRAPPERS) for node in graph.nodes.values()):
        return model
    ends = [_inner(graph.nodes[end.node].layer).name for end in graph.output_tensors]
    graph = dataclasses.replace(graph, output_names=tuple(ends))
    return rebuild(graph, _Unwrapping(graph).apply, name=model.name)


_WRAPPERS = (tfmot_keras.QuantizeWrapper, QuantizeLayer)


class _Unwrapping:
    """Makes the layers of our model while TFMOT's graph is walked."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.copies: dict[Any, Layer] = {}
        # By the identity of a Keras tensor: its grid, and a convolution's scale.
        self.steps: dict[int, Tensor] = {}
        self.zero_points: dict[int, int] = {}
        self.scales: dict[int, Tensor] = {}

    def apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Applies what a node becomes."""
        layer, config = _unwrapped(node.layer)
        if isinstance(layer, QuantizeLayer):
            return self._quantize(args[0], node.layer, layer.quantizer, layer.name, layer.name)
        quantizers = config.get_output_quantizers(layer) if config else []
        x, name, quantizer = args[0], layer.name, f"{layer.name}_quantize"
        if quantizers and self.graph.is_output(node.name):
            name, quantizer = f"{name}{OPERATOR}", name
        if isinstance(layer, ReparamConv):
            y = self._block(node.layer, layer, config, x, name)
        elif isinstance(config, LSQQuantizeConfig):
            y = self._stock(node.layer, layer, config, x, name)
        elif self._awaits_activation(node, layer):
            return (list(x),)  # one output, of which an activation makes the sum
        elif quantizers and isinstance(x, list):
            return self._sum(node, layer, quantizers[0], x)
        elif quantizers and isinstance(layer, keras.layers.GlobalAveragePooling2D):
            return self._mean(node, layer, quantizers[0], x)
        else:
            plain = dataclasses.replace(node, name=name, layer=layer)
            y = copy_call(plain, args, kwargs, self.copies)
            first = x[0] if isinstance(x, list) else x
            self._on_grid(y, self.steps.get(id(first)), self.zero_points.get(id(first)))
        if not quantizers:
            return y
        return self._quantize(y, node.layer, quantizers[0], "output", quantizer)

    def _on_grid(self, y: Tensor, step: Tensor | None, zero: int | None) -> Tensor:
        if step is not None and zero is not None:
            self.steps[id(y)], self.zero_points[id(y)] = step, zero
        return y

    def _quantize(
        self, x: Tensor, owner: Layer, quantizer: LSQQuantizer, prefix: str, name: str
    ) -> Tensor:
        """Applies the `Quantize` layer that equals a quantizer of TFMOT."""
        _check(owner, quantizer, LSQQuantizer, "quantizer")
        scale = self.scales.get(id(x))
        step: Any = None if quantizer.learned else quantizer.step
        return self._call(
            Quantize(quantizer.bits, quantizer.signed, step=step, name=name),
            (x,) if scale is None else (x, scale),
            owner,
            prefix,
        )

    def _call(
        self, layer: Quantize, args: tuple[Any, ...], owner: Layer, prefix: str = "output"
    ) -> Tensor:
        """Calls a layer that has the steps of TFMOT's; shared ones are made once."""
        layer = self.copies.setdefault(layer.name, layer)
        y, step = layer(*args)
        _copy_step(owner, prefix, layer.activation_quantizer)
        return self._on_grid(y, step, layer.zero_point)

    def _convolution(self, owner: Layer, block: ReparamConv, prefix: str, x: Tensor) -> Tensor:
        """Calls a block, whose output the next quantizer rounds."""
        step = self.steps.get(id(x))
        if step is None:
            raise ValueError(
                f"layer {block.name!r}: its input has no quantizer; annotate the whole model, "
                "or quantize it with repq_tf.tfmot.RepQScheme"
            )
        y, scale = block(x, step)
        self.scales[id(y)] = scale
        assert block.weight_quantizer is not None  # its config has weight_bits
        _copy_step(owner, prefix, block.weight_quantizer)
        return y

    def _block(
        self,
        owner: Layer,
        layer: ReparamConv,
        config: Any,
        x: Tensor,
        name: str,
    ) -> Tensor:
        if not hasattr(config, "weight_bits"):  # rules left it in floating point
            block = copy_layer(layer, name)
            y = block(x)
        else:
            names = ("weight_bits", "per_channel", "weight_levels", "wide_tap")
            block = copy_layer(layer, name, **{key: getattr(config, key) for key in names})
            y = self._convolution(owner, block, "post_activation", x)
        copy_parts(layer, block)
        return y

    def _stock(
        self, owner: Layer, layer: Layer, config: LSQQuantizeConfig, x: Tensor, name: str
    ) -> Tensor:
        activation = activation_name(layer)
        if activation not in FUSED:
            raise ValueError(
                f"layer {layer.name!r}: activation must be one of {FUSED}. "
                f"Received: {activation}"
            )
        # TFMOT has put a tensor in the place of its kernel; a copy has a variable.
        copy = copy_layer(layer)
        copy.build(layer.input_shape)
        copy_state(layer, copy)
        kind, options = stock_block(copy)
        block = kind(
            **options,
            name=name,
            activation=activation,
            weight_bits=config.weight_bits,
            per_channel=config.per_channel,
        )
        (kernel,) = (w for w in layer.weights if _variable_name(w) == kernel_name(layer))
        y = self._convolution(owner, block, _variable_name(kernel), x)
        copy_stock(copy, None, block)
        return y

    def _awaits_activation(self, node: Node, layer: Layer) -> bool:
        """Whether a sum is quantized behind the activation that alone reads it."""
        if not isinstance(layer, keras.layers.Add) or isinstance(node.layer, _WRAPPERS):
            return False
        readers = self.graph.consumers(node.name)
        if len(readers) != 1 or self.graph.is_output(node.name):
            return False
        reader, config = _unwrapped(readers[0].layer)
        activation = isinstance(reader, keras.layers.ReLU | keras.layers.Activation)
        return activation and bool(config and config.get_output_quantizers(reader))

    def _sum(
        self, node: Node, layer: Layer, quantizer: LSQQuantizer, terms: Sequence[Tensor]
    ) -> Tensor:
        name, activation = layer.name, "linear"
        if not isinstance(layer, keras.layers.Add):
            activation = activation_name(layer)
            name = node.inputs[0].node
        _check(node.layer, quantizer, LSQQuantizer, "quantizer")
        add = QuantizedAdd(quantizer.bits, quantizer.signed, activation, name=name)
        return self._call(add, (*terms, *(self.steps[id(x)] for x in terms)), node.layer)

    def _mean(self, node: Node, layer: Layer, quantizer: LSQQuantizer, x: Tensor) -> Tensor:
        _check(node.layer, quantizer, LSQQuantizer, "quantizer")
        mean = QuantizedMean(
            quantizer.bits,
            quantizer.signed,
            layer.keepdims,
            self.zero_points[id(x)],
            name=layer.name,
        )
        return self._call(mean, (x, self.steps[id(x)]), node.layer)


def _inner(layer: Layer) -> Layer:
    """The layer inside TFMOT's wrapper, or itself."""
    return layer.layer if isinstance(layer, tfmot_keras.QuantizeWrapper) else layer


def _unwrapped(layer: Layer) -> tuple[Layer, OutputQuantizeConfig | None]:
    """The layer inside TFMOT's wrapper and its config; without one, itself and None."""
    if not isinstance(layer, tfmot_keras.QuantizeWrapper):
        return layer, None
    config = layer.quantize_config
    return _inner(layer), _check(layer, config, OutputQuantizeConfig, "config")


def _check(layer: Layer, part: Any, kind: type, what: str) -> Any:
    if not isinstance(part, kind):
        raise ValueError(
            f"layer {layer.name!r}: its {what} must be one of repq_tf.tfmot for the file to "
            "compute what was trained; quantize_apply needs scheme=repq_tf.tfmot.RepQScheme("
            f"...), also where layers are annotated. Received: {type(part).__name__}"
        )
    return part


def _copy_step(owner: Layer, prefix: str, quantizer: LSQ) -> None:
    """Gives a quantizer the step that TFMOT's has among the weights of its owner."""
    weights = {_variable_name(weight): weight for weight in owner.weights}
    seen = weights.get(f"{prefix}_step_seen")
    if seen is not None and not float(seen):
        raise ValueError(
            f"layer {owner.name!r}: its step is not set; train the model, or give RepQScheme "
            "calibration_data"
        )
    quantizer.initial_step.assign(weights[f"{prefix}_initial_step"])
    quantizer.change.assign(weights[f"{prefix}_step_change"])


def _variable_name(variable: Variable) -> str:
    return variable.name.split("/")[-1].split(":")[0]
