"""What the networks of several families are made of."""

import math
from typing import Any

from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import ReparamConv, SqueezeExcite

# The largest image, by its shorter side, that the stem and each stage do not halve.
_NOT_HALVED = (64, 32, 16, 0, 0)


def scale_channels(channels: float, width: float) -> int:
    """Returns `channels * width` rounded to a multiple of 8, at least 8."""
    return max(8, 8 * math.floor(channels * width / 8 + 0.5))


def stage_strides(images: Tensor) -> list[int]:
    """The strides of the stem and of four stages.

    On ImageNet all five halve the image. Smaller images keep their size for longer: the
    stem has stride 1 where the shorter side is at most 64 pixels, so has stage 1 from 32
    pixels down (the geometry of public CIFAR weights), and stage 2 from 16 pixels down. The
    last feature map then has at least 3 pixels a side, or 2 from 8 pixels down to 5.
    """
    side = min(images.shape[1:3])
    return [1 if side <= limit else 2 for limit in _NOT_HALVED]


def relu_block(
    x: Tensor,
    block: type[ReparamConv],
    channels: int,
    name: str,
    squeeze: bool = False,
    **settings: Any,
) -> Tensor:
    """A block and its ReLU, with squeeze and excite (to a sixteenth) before the ReLU if asked.

    Args:
        x: the features.
        block: class of the block.
        channels: number of output channels.
        name: name of the block.
        squeeze: whether there is squeeze and excite.
        **settings: of the block.
    """
    if not squeeze:
        return block(channels, activation="relu", name=name, **settings)(x)
    x = block(channels, name=name, **settings)(x)
    x = SqueezeExcite(max(channels // 16, 1), name=f"{name}_se")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def torch_uniform() -> keras.initializers.Initializer:
    """Returns PyTorch's default initializer of kernels: U(-1, 1) / sqrt(fan_in)."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")
