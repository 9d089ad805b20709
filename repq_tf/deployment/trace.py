"""A quantized model as the function that the converter gets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.arguments import fitting_shape
from repq_tf.arithmetic import levels, zero_point
from repq_tf.deployment.emission import depth_to_space_wide, emit, skeleton
from repq_tf.graphs import Graph, Node, evaluate, leaves
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.layers import DenseBlock, DepthToSpace, Quantize, QuantizedPReLU, ReparamConv
from repq_tf.quantization.grids import (
    ON_INPUT_GRID,
    grid_layer,
    input_quantizer,
    known_name,
    own_quantizer,
    quantized_node,
    stays_inside,
)
from repq_tf.quantization.operators import activation_name
from repq_tf.reparameterization.merge import stock_padding


def end_names(graph: Graph) -> dict[str, str]:
    """What the converter, which sorts them, calls a model's ends: `{that: the file's name}`."""
    (source,) = (node.name for node in graph.nodes.values() if node.is_input)
    outputs = {f"output{index:03}": key for index, key in enumerate(graph.output_keys)}
    return {"input": source, **outputs}


class Trace:
    """A quantized model as a TensorFlow function with fake quantization.

    Called, it returns each gridded tensor under a key, so that the file's tensors can be
    found; `grids` then says what each of them must be.
    """

    def __init__(self, graph: Graph, input_shape: Sequence[int] | None) -> None:
        self.graph = graph
        self.grids: dict[str, Any] = {}
        self.input_grid: Any = None
        (source,) = (node for node in graph.nodes.values() if node.is_input)
        self.input_layer: Any = own_quantizer(graph, source)
        self.input_shape = source.input_shape[1:]
        if input_shape is not None:
            self.input_shape = fitting_shape(self.input_shape, input_shape)
        self.names = end_names(graph)
        _, *self.outputs = self.names
        # Numbers are taken now: inside the trace, variables have none.
        self.weights, self.steps, self.slopes = {}, {}, {}
        for node in graph.nodes.values():
            self._check(node)
            if isinstance(node.layer, ReparamConv):
                quantizer = input_quantizer(graph, node)
                assert quantizer is not None  # as checked
                step = quantizer.step
                *tensors, groups = node.layer.integer_weights(step)
                weights = (ops.convert_to_numpy(value) for value in tensors)
                self.weights[node.name] = (*weights, np.float32(step), groups)
            elif isinstance(node.layer, Quantize):
                self.steps[node.layer.name] = np.float32(node.layer.step)
            if isinstance(node.layer, QuantizedPReLU):
                slope = map(ops.convert_to_numpy, node.layer.integer_slope())
                self.slopes[node.name] = tuple(slope)
        if self.input_layer is None:
            raise ValueError(
                f"model {graph.name!r}: its input {source.name!r} has no quantizer, so the "
                "file would not be all integer"
            )
        finite = {name: np.isfinite(step) for name, step in self.steps.items()}
        finite.update(
            {n: all(np.isfinite(w).all() for w in ws[:3]) for n, ws in self.weights.items()}
        )
        broken = [name for name, good in finite.items() if not good]
        if broken:
            raise ValueError(
                f"model {graph.name!r} holds NaN or infinity, first in layer {broken[0]!r}; "
                "its training has diverged"
            )

    def _check(self, node: Node) -> None:
        name = known_name(self.graph, node)
        if not isinstance(node.layer, ReparamConv):
            if node.layer.weights and not isinstance(node.layer, Quantize):
                raise ValueError(
                    f"layer {name!r} ({type(node.layer).__name__}) computes in floating "
                    "point; export what repq_tf.quantize returned, not the merged model"
                )
            return
        quantized = node.layer.weight_quantizer is not None
        readers = self.graph.consumers(node.name)
        if quantized and input_quantizer(self.graph, node) and readers:
            if all(type(reader.layer) is Quantize for reader in readers):
                return
        raise ValueError(
            f"layer {name!r} computes in floating point (its kernel, its input or its "
            "output has no quantizer), so the file would not be all integer"
        )

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """The tensors of the file, by key, for images x."""
        self.taps, self.grids, self.skeletons = {}, {}, 0
        results = evaluate(self.graph, lambda node: x, self._apply)
        sources = self.graph.output_tensors
        for key, tensor, source in zip(self.outputs, leaves(results), sources, strict=True):
            self.taps[key] = tensor
            self.grids[key] = self.grid(grid_layer(self.graph, source))
        return self.taps

    def grid(
        self,
        layer: Quantize,
        name: str = "",
        weights: Array | None = None,
        weight_scale: Array | None = None,
        bias: Array | None = None,
    ) -> Any:
        """The `Grid` of a tensor that a `Quantize` layer rounds."""
        from repq_tf.deployment.editing import Grid  # needs LiteRT's schema

        zero = zero_point(layer.bits, layer.signed)
        scale = self.steps[layer.name]
        return Grid(scale, zero, name, weights, weight_scale, bias)

    def tap(self, y: Tensor, grid: Any) -> Tensor:
        """Notes the grid of a tensor of the file; returns the tensor."""
        key = f"tap{len(self.taps)}"
        self.taps[key], self.grids[key] = y, grid
        return y

    def fake_quantize(self, x: Tensor, layer: Quantize) -> Tensor:
        """8-bit fake quantization whose range holds the layer's grid."""
        import tensorflow as tf

        step, zero = float(self.steps[layer.name]), zero_point(layer.bits, layer.signed)
        if layer.bits == 16:
            step *= 256  # the file is widened afterwards
        return tf.quantization.fake_quant_with_min_max_vars(
            x, (-128 - zero) * step, (127 - zero) * step, num_bits=8
        )

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import tensorflow as tf

        layer, x = node.layer, args[0]
        if isinstance(layer, Quantize):
            return self._quantize(node, emit(self, node, args)), self.steps[layer.name]
        if isinstance(layer, DenseBlock):
            return self._dense(node, x), None
        if isinstance(layer, ReparamConv):
            return self._convolution(node, x), None
        if isinstance(layer, keras.layers.Dropout):
            return x
        if isinstance(layer, keras.layers.Flatten | keras.layers.Reshape) or (
            isinstance(layer, keras.layers.GlobalAveragePooling2D) and x.shape[1:3] == (1, 1)
        ):
            # With a static shape; Keras's own computes the shape at run time.
            shape = layer.compute_output_shape(x.shape)[1:]
            if None in shape:
                raise ValueError(
                    f"layer {known_name(self.graph, node)!r} makes {shape} of images of any "
                    "size, which a file cannot; give input_shape"
                )
            return tf.reshape(x, (-1, *shape))
        if isinstance(layer, ON_INPUT_GRID):
            return emit(self, node, args)
        if isinstance(layer, DepthToSpace) and self.input_layer.bits == 16:
            return depth_to_space_wide(x, layer.block_size)
        y = layer(*args, **kwargs)
        relu = isinstance(layer, keras.layers.ReLU | keras.layers.Activation)
        readers = self.graph.consumers(node.name)
        if (
            relu
            and activation_name(layer) != "linear"
            and not any(type(reader.layer) is Quantize for reader in readers)
        ):
            # A ReLU that stands alone keeps the scale of its input.
            y = self.fake_quantize(y, grid_layer(self.graph, node.inputs[0]))
        return y

    def _quantize(self, node: Node, x: Tensor) -> Tensor:
        """Fake-quantizes a tensor and notes the grid of the file's tensor."""
        import tensorflow as tf

        layer = node.layer
        source = quantized_node(self.graph, node)
        if source.is_input:
            self.input_grid = self.grid(layer, source.name)
            return self.fake_quantize(x, layer)
        weights = self.weights.get(source.name, (None,) * 5)[:3]
        y = self.fake_quantize(x, layer)
        # An average must keep its zero point as well.
        if layer.signed and layer.bits < 8 and not stays_inside(source.layer):
            low = levels(layer.bits, True, narrow=False)[0] * self.steps[layer.name]
            y = tf.maximum(y, self.fake_quantize(tf.constant(float(low)), layer))
            y = self.fake_quantize(y, layer)
        return self.tap(y, self.grid(layer, known_name(self.graph, source), *weights))

    def _convolution(self, node: Node, x: Tensor) -> Tensor:
        import tensorflow as tf

        block = node.layer
        integers, scale, bias, step, groups = self.weights[node.name]
        spatial, channels = tuple(x.shape[1:3]), x.shape[-1]
        window = block.window(spatial)
        padding = stock_padding(window, block, spatial)
        if padding is None:
            x, padding = tf.pad(x, ((0, 0), *window, (0, 0))), "valid"
        if groups == channels > 1:
            multiplier = integers.shape[-1] // channels
            kernel = skeleton(self, (*block.kernel_size, channels, multiplier))
            strides = (1, *block.strides, 1)
            y = tf.nn.depthwise_conv2d(x, kernel, strides, padding.upper())
        else:
            kernel = skeleton(self, integers.shape, per_channel=True)
            y = tf.nn.conv2d(x, kernel, block.strides, padding.upper())
        return _activate(block, tf.nn.bias_add(y, bias * (scale * step)))

    def _dense(self, node: Node, x: Tensor) -> Tensor:
        import tensorflow as tf

        integers, scale, bias, step, _ = self.weights[node.name]
        y = tf.matmul(x, skeleton(self, integers.shape[2:]))
        return _activate(node.layer, tf.nn.bias_add(y, bias * (scale * step)))


def _activate(block: ReparamConv, y: Tensor) -> Tensor:
    import tensorflow as tf

    name = activation_name(block)
    return {"linear": lambda x: x, "relu": tf.nn.relu, "relu6": tf.nn.relu6}[name](y)
