"""ECBSR (ACM MM 2021): super resolution with edge-oriented blocks, and its plain twins.

A 3x3 block to c channels, m of c to c, each with a PReLU, and one to `scale^2` times the
image's channels; the image is added to every `scale^2`-th part, and depth to space follows.
Pixels may have any range: there is no batch norm. The authors train on the luma of images
in 0 to 255.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from repq_tf.arguments import positive
from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import ECB, ConvBlock, ReparamConv
from repq_tf.layers.options import NetworkOptions
from repq_tf.models.arguments import check_block_options
from repq_tf.models.parts import torch_uniform
from repq_tf.models.registry import register
from repq_tf.models.upscaling import DOCUMENTATION, upscaling_network

_ARGUMENTS = """
        **block_options: passed to every block, such as `merged`{own}."""


def ecbsr(
    m: int,
    c: int,
    scale: int = 2,
    channels: int = 1,
    input_shape: Sequence[int | None] | None = None,
    **block_options: Unpack[NetworkOptions],
) -> keras.Model:
    """ECBSR of any depth and width.

    Args:
        m: number of blocks between the first and the last.
        c: their number of channels.
        scale: how many times larger the image becomes; 2 to 4 in the paper.
        channels: number of channels of the image: 1, the luma, or 3.
        input_shape: `(height, width, channels)` of the images. Default: any size.
        **block_options: passed to every block, such as `merged` or `multiplier`; `identity`
            to those with as many inputs as outputs.

    Returns:
        A Functional `keras.Model` from images to images.

    Example:
        >>> model = repq_tf.models.ecbsr(m=4, c=8, scale=2)
    """
    m, c = positive(m, "m"), positive(c, "c")
    return _network(f"ecbsr_m{m}c{c}", ECB, m, c, scale, channels, input_shape, block_options)


def _network(
    name: str,
    block: type[ReparamConv],
    m: int,
    c: int,
    scale: int,
    channels: int,
    input_shape: Sequence[int | None] | None,
    options: Mapping[str, Any],
) -> keras.Model:
    check_block_options(name, block, options)
    if block is ConvBlock:
        options = {"kernel_initializer": torch_uniform(), **options}

    def conv(x: Tensor, filters: int, name: str) -> Tensor:
        """A block, with the identity only where it has as many inputs as outputs."""
        settings = dict(options)
        if x.shape[-1] != filters:
            settings.pop("identity", None)
        return block(filters, name=name, **settings)(x)

    def blocks(images: Tensor, filters: int) -> Tensor:
        x = _prelu(conv(images, c, "first"), "first")
        for index in range(1, m + 1):
            x = _prelu(conv(x, c, f"block{index}"), f"block{index}")
        return conv(x, filters, "last")

    return upscaling_network(name, blocks, scale, channels, input_shape)


def _prelu(x: Tensor, name: str) -> Tensor:
    start = keras.initializers.Constant(0.25)
    return keras.layers.PReLU(start, shared_axes=[1, 2], name=f"{name}_prelu")(x)


def _make(
    name: str,
    summary: str,
    block: type[ReparamConv],
    m: int,
    c: int,
    own: str = "",
) -> None:
    """Makes and registers the function that builds a network."""

    def build(
        scale: int = 2,
        channels: int = 1,
        input_shape: Sequence[int | None] | None = None,
        **block_options: Unpack[NetworkOptions],
    ) -> keras.Model:
        return _network(name, block, m, c, scale, channels, input_shape, block_options)

    build.__name__ = build.__qualname__ = name
    build.__module__ = "repq_tf.models"
    build.__doc__ = DOCUMENTATION.format(
        summary=summary, name=name, arguments=_ARGUMENTS.format(own=own)
    )
    register(build)


def _networks(m: int, c: int) -> None:
    """Registers a network and its plain twin."""
    name, title = f"ecbsr_m{m}c{c}", f"ECBSR-M{m}C{c}"
    summary = f"{title}: super resolution (ACM MM 2021)."
    _make(name, summary, ECB, m, c, own=", `multiplier` or `identity`")
    _make(f"{name}_plain", f"The plain twin of {title}: 3x3 convolutions.", ConvBlock, m, c)


for _m, _c in itertools.product((4, 10, 16), (8, 16, 32, 64)):
    _networks(_m, _c)
