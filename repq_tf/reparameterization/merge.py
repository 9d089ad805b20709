"""`merge`: every block becomes one plain Keras convolution."""

from typing import Any

import numpy as np

from repq_tf.branches import NumpyReading
from repq_tf.graphs import Graph, Node, copy_call, free_name, read_native, rebuild
from repq_tf.keras_api import Array, Layer, Pair, Shape, Tensor, keras, ops
from repq_tf.kernels import dilate
from repq_tf.layers import ConvTransposeBlock, DenseBlock, Quantize, ReparamConv
from repq_tf.layers.freezing import is_frozen
from repq_tf.layers.stock import mirrored
from repq_tf.quantization.grids import input_quantizer
from repq_tf.windows import VALID, Window, same_window


def merge(model: keras.Model) -> keras.Model:
    """Returns the model in plain Keras layers: one convolution for each block.

    Kernels are merged in float64. The output equals the model's in inference within
    rounding. Of a quantized model, kernels and biases are the deployed integers times
    their scales, and its `Quantize` layers stay, since Keras has none; the float model
    consists of stock layers alone.

    Args:
        model: a Functional or Sequential Keras model, float or quantized.

    Returns:
        A `keras.Model` of the same inputs and outputs, float32.

    Example:
        >>> merged = repq_tf.merge(model)
        >>> merged.save("deployed.keras")
        >>> outputs = merged(images[:1])  # Keras exports what has been called
        >>> merged.export("saved_model", format="tf_saved_model")
        >>> merged.export("deployed.onnx", format="onnx")  # pip install "repq_tf[onnx]"
    """
    graph = read_native(model)
    weights: dict[str, list[Array]] = {}
    copies: dict[int, Layer] = {}
    convolutions: dict[int, list[Layer]] = {}

    def apply(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = node.layer
        if isinstance(layer, ReparamConv):
            kernel, bias, groups = deployed_kernel(graph, node)
            pad = free_name(f"{node.name}_pad", graph.nodes)
            made, values = _convolution(node, args[0], kernel, bias, groups, pad)
            calls = convolutions.setdefault(id(layer), [])
            for other in calls:
                if _is_alike(other, made[-1], weights[other.name], values):
                    made[-1] = other  # of another call of the block
            if made[-1].name not in weights:
                weights[made[-1].name] = values
                calls.append(made[-1])
            y = args[0]
            for item in made:
                y = item(y)
            return y, None
        if type(layer) is Quantize:
            args = args[:1]  # without the scale, which plain convolutions do not know
        # What half precision has trained is deployed in float32.
        float32 = {"dtype": "float32"} if "float" in layer.compute_dtype else {}
        return copy_call(node, args, kwargs, copies, **float32)

    merged = rebuild(graph, apply, name=f"{model.name}_merged")
    for name, values in weights.items():
        merged.get_layer(name).set_weights(values)
    return merged


def deployed_kernel(graph: Graph, node: Node) -> tuple[Array, Array, int]:
    """A block's deployed kernel, bias and groups, in float64."""
    block, source = node.layer, input_quantizer(graph, node)
    if block.weight_quantizer is None or source is None:
        affine = block.merge(NumpyReading())
        kernel = affine.kernel
        if block.weight_quantizer is not None:
            raise ValueError(
                f"layer {node.name!r} is quantized but not given the step of its input; call "
                "it with both outputs of the Quantize layer before it"
            )
        return kernel, affine.bias, affine.groups
    integers, scale, bias, groups = block.integer_weights(source.step)
    integers, scale, bias, step = (
        np.asarray(ops.convert_to_numpy(value), np.float64)
        for value in (integers, scale, bias, source.step)
    )
    return integers * scale, bias * scale * step, groups


def _convolution(
    node: Node,
    x: Tensor,
    kernel: Array,
    bias: Array,
    groups: int,
    pad: str,
) -> tuple[list[Layer], list[Array]]:
    """The plain layers of a block, one after the other, and the weights of the last."""
    block, before = node.layer, []
    options = dict(
        activation=block.activation,
        name=node.name,
        trainable=block.trainable and not is_frozen(block),
        dtype="float32",
    )
    if isinstance(block, DenseBlock):
        return [keras.layers.Dense(block.filters, **options)], [kernel[0, 0], bias]
    if isinstance(block, ConvTransposeBlock):
        options |= dict(strides=block.upsampling, padding=block.padding)
        layer = keras.layers.Conv2DTranspose(block.filters, block.kernel_size, **options)
        return [layer], [mirrored(kernel), bias]
    window = block.window(x.shape[1:3])
    padding = stock_padding(window, block, x.shape[1:3])
    if padding is None:
        before = [keras.layers.ZeroPadding2D(window, name=pad, dtype="float32")]
    options |= dict(strides=block.strides, padding=padding or "valid")
    channels = x.shape[-1]
    kernel, options["dilation_rate"] = without_zeros(block, kernel)
    size = kernel.shape[:2]
    if 1 < groups == channels:
        multiplier = block.filters // channels
        layer = keras.layers.DepthwiseConv2D(size, depth_multiplier=multiplier, **options)
        return [*before, layer], [kernel.reshape(*size, channels, multiplier), bias]
    layer = keras.layers.Conv2D(block.filters, size, groups=groups, **options)
    return [*before, layer], [kernel, bias]


def _is_alike(one: Layer, other: Layer, weights: list[Array], values: list[Array]) -> bool:
    """Whether two layers compute the same of the same."""
    configs = [{**layer.get_config(), "name": ""} for layer in (one, other)]
    equal = all(np.array_equal(a, b) for a, b in zip(weights, values, strict=True))
    return equal and configs[0] == configs[1]


def without_zeros(block: ReparamConv, kernel: Array) -> tuple[Array, Pair]:
    """A merged kernel without the zeros of its block's dilation, and the rates of that.

    Args:
        block: the block.
        kernel: `(kh, kw, in / groups, out)`.
    """
    rows, columns = rates = getattr(block, "dilation_rate", (1, 1))
    weights = kernel[::rows, ::columns]
    if np.array_equal(dilate(weights, rates), kernel):
        return weights, rates
    return kernel, (1, 1)  # what rounds them may have filled them


def stock_padding(window: Window, block: ReparamConv, spatial: Shape) -> str | None:
    """The Keras padding that equals a window, or None if it has to be written out."""
    if window == VALID:
        return "valid"
    known = all(s == 1 or n for s, n in zip(block.strides, spatial, strict=True))
    if known and window == same_window(block.kernel_size, block.strides, spatial):
        return "same"
    return None
