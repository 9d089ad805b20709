"""Super resolution for phones: plain 3x3 convolutions with ReLU, trained as any block.

A 3x3 block to c channels, m of c to c, each with a ReLU, and one to `scale^2` times the
image's channels; the image is added to every `scale^2`-th part, and depth to space follows.
Deployed, these are m + 2 convolutions with fused ReLUs, an addition and a rearrangement, which
every accelerator has. The blocks are RepVGG's without batch norms, or any others.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from repq_tf import layers
from repq_tf.arguments import positive
from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import ConvBlock, DenseBlock, ReparamConv
from repq_tf.layers.options import NetworkOptions
from repq_tf.models.arguments import check_block_options
from repq_tf.models.parts import torch_uniform
from repq_tf.models.registry import ModelFunction, register
from repq_tf.models.upscaling import DOCUMENTATION, upscaling_network

_BLOCKS = {
    name: getattr(layers, name)
    for name in layers.__all__
    if issubclass(getattr(layers, name), ReparamConv)
    and getattr(layers, name) not in (ReparamConv, DenseBlock)
}
_BLOCK_ARGUMENT = """
        block: name of the blocks' class in `repq_tf.layers`, or a `ReparamConv` of your own.
            Those that can do without batch norms have none unless asked."""
_OPTIONS_ARGUMENT = """
        **block_options: passed to every block, such as `merged`."""


def repvgg_sr(
    m: int,
    c: int,
    scale: int = 2,
    channels: int = 1,
    input_shape: Sequence[int | None] | None = None,
    block: str | type[ReparamConv] = "RepVGGBlock",
    **block_options: Unpack[NetworkOptions],
) -> keras.Model:
    """The network of any depth, width and blocks.

    Args:
        m: number of blocks between the first and the last.
        c: their number of channels.
        scale: how many times larger the image becomes, at least 2.
        channels: number of channels of the image: 1, the luma, or 3.
        input_shape: `(height, width, channels)` of the images. Default: any size.
        block: name of the blocks' class in `repq_tf.layers`, or a `ReparamConv` of your own.
            Those that can do without batch norms have none unless asked.
        **block_options: passed to every block, such as `merged`.

    Returns:
        A Functional `keras.Model` from images to images.

    Example:
        >>> model = repq_tf.models.repvgg_sr(m=4, c=16, scale=3, block="MobileOneBlock")
    """
    m, c = positive(m, "m"), positive(c, "c")
    name = f"repvgg_sr_m{m}c{c}"
    return _network(name, _find_block(block), m, c, scale, channels, input_shape, block_options)


def _find_block(block: str | type[ReparamConv]) -> type[ReparamConv]:
    if isinstance(block, type) and issubclass(block, ReparamConv):
        return block
    if not isinstance(block, str) or block not in _BLOCKS:
        raise ValueError(
            "block must be a subclass of ReparamConv, or one of: "
            f"{', '.join(sorted(_BLOCKS))}. Received: {block!r}"
        )
    return _BLOCKS[block]


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
    options = {**_defaults(block), **options}

    def blocks(images: Tensor, filters: int) -> Tensor:
        x = block(c, activation="relu", name="first", **options)(images)
        for index in range(1, m + 1):
            x = block(c, activation="relu", name=f"block{index}", **options)(x)
        return block(filters, name="last", **options)(x)

    return upscaling_network(name, blocks, scale, channels, input_shape)


def _defaults(block: type[ReparamConv]) -> dict[str, Any]:
    """Options by which blocks have biases in place of batch norms, and start small."""
    if block is ConvBlock:
        return {"kernel_initializer": torch_uniform()}
    own = inspect.signature(block.__init__).parameters
    if "use_batch_norm" not in own:
        return {}
    defaults = {"use_batch_norm": False, "kernel_initializer": torch_uniform()}
    return {**defaults, "use_bias": True} if "use_bias" in own else defaults


def _register(
    name: str,
    summary: str,
    arguments: str,
    build: ModelFunction,
) -> None:
    build.__name__ = build.__qualname__ = name
    build.__module__ = "repq_tf.models"
    build.__doc__ = DOCUMENTATION.format(summary=summary, name=name, arguments=arguments)
    register(build)


def _networks(m: int, c: int) -> None:
    """Registers a network and its plain twin."""
    name, title = f"repvgg_sr_m{m}c{c}", f"RepVGG-SR-M{m}C{c}"

    def build(
        scale: int = 2,
        channels: int = 1,
        input_shape: Sequence[int | None] | None = None,
        block: str | type[ReparamConv] = "RepVGGBlock",
        **block_options: Unpack[NetworkOptions],
    ) -> keras.Model:
        return repvgg_sr(m, c, scale, channels, input_shape, block, **block_options)

    def build_plain(
        scale: int = 2,
        channels: int = 1,
        input_shape: Sequence[int | None] | None = None,
        **block_options: Unpack[NetworkOptions],
    ) -> keras.Model:
        plain = f"{name}_plain"
        return _network(plain, ConvBlock, m, c, scale, channels, input_shape, block_options)

    summary = f"{title}: super resolution by 3x3 convolutions and ReLUs, of any blocks."
    arguments = _BLOCK_ARGUMENT + _OPTIONS_ARGUMENT
    _register(name, summary, arguments, build)
    summary = f"The plain twin of {title}: ordinary convolutions."
    _register(f"{name}_plain", summary, _OPTIONS_ARGUMENT, build_plain)


for _m, _c in itertools.product((4, 10), (16, 32)):
    _networks(_m, _c)
