"""What a layer costs: parameters, multiplications and bytes, once it is deployed."""

import dataclasses
import math
from collections.abc import Sequence

from repq_tf.keras_api import Layer, keras
from repq_tf.layers import QuantizedPReLU, ReparamConv, SqueezeExcite
from repq_tf.layers.stock import STOCK
from repq_tf.quantizers import LSQ

FLOAT_BITS = 32
BYTES_OF_BIAS = 4  # int32, or float32
_ELEMENTWISE = (keras.layers.PReLU, QuantizedPReLU)


@dataclasses.dataclass(frozen=True)
class Map:
    """A linear map: each of `positions` outputs is `kernel / channels` multiplications.

    Attributes:
        kernel: number of weights.
        bias: number of biases.
        positions: how many times the whole kernel is applied to one image.
    """

    kernel: int
    bias: int
    positions: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.kernel * self.positions


def linear_maps(layer: Layer, channels: int, shape: Sequence[int]) -> list[Map] | None:
    """The linear maps of a deployed layer.

    Args:
        layer: a Keras layer or a block of ours; a block counts as the one convolution that
            it is merged into.
        channels: number of channels of its input.
        shape: of its output, without the batch.

    Returns:
        A list of `Map`, empty for layers without; None for a layer that is not known.
    """
    positions = math.prod(shape[:-1])
    if isinstance(layer, ReparamConv):
        size = math.prod(layer.kernel_size) * channels // layer.groups
        positions //= layer.upsampling**2
        return [Map(size * layer.filters, layer.filters, positions)]
    if isinstance(layer, SqueezeExcite):
        return [_dense(part, 1) for part in (layer.reduce, layer.expand)]
    if isinstance(layer, keras.layers.Conv2DTranspose):
        positions //= math.prod(layer.strides)
    if type(layer) in STOCK:
        return [_dense(layer, positions)]
    known = isinstance(layer, _ELEMENTWISE) or all(len(w.shape) < 2 for w in layer.weights)
    return [] if known else None


def _dense(layer: Layer, positions: int) -> Map:
    sizes = [math.prod(weight.shape) for weight in layer.weights]
    return Map(sizes[0], sum(sizes[1:]), positions)


def deployed_parameters(layer: Layer, maps: Sequence[Map] | None) -> int:
    """The parameters that the merged network holds in a layer's place."""
    if maps:
        return sum(each.kernel + each.bias for each in maps)
    steps = {
        id(weight)
        for part in vars(layer).values()
        if isinstance(part, LSQ)
        for weight in part.weights
    }
    return sum(math.prod(w.shape) for w in layer.weights if id(w) not in steps)


def stored_bytes(
    layer: Layer, maps: Sequence[Map] | None, weight_bits: int | None, packed: bool
) -> int:
    """Bytes of the deployed weights.

    Args:
        layer: the layer.
        maps: its `linear_maps`.
        weight_bits: of its kernel: stored in int8, with biases in int32; None for floating
            point, stored in float32.
        packed: whether two weights share a byte.
    """
    if not maps or weight_bits is None:
        return FLOAT_BITS // 8 * deployed_parameters(layer, maps)
    per_byte = 2 if packed else 1
    return sum(-(-each.kernel // per_byte) + each.bias * BYTES_OF_BIAS for each in maps)
