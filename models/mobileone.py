"""The MobileOne family (arXiv 2206.04040), and its plain twins.

A network is a 3x3 stem and four stages of pairs of blocks: a depthwise 3x3 one and a 1x1
one, each with its ReLU. S4 has squeeze and excite in half of stage 3 and in stage 4,
after both blocks of a pair. The stem is not over-parameterized, as in the authors' code.
MobileOne-Tiny is ours: S1's blocks in seven pairs, for microcontrollers and small images.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from repq_tf.keras_api import Tensor
from repq_tf.layers import ConvBNBlock, MobileOneBlock, ReparamConv
from repq_tf.models.arguments import common_options
from repq_tf.models.classifier import classifier
from repq_tf.models.parts import relu_block, scale_channels, stage_strides, torch_uniform

_CHANNELS = (64, 128, 256, 512)
_DEPTHS = (2, 8, 10, 1)
_SQUEEZED = (0, 0, 5, 1)  # pairs with squeeze and excite, the last ones of each stage


def _features(
    images: Tensor,
    width: float,
    block: type[ReparamConv],
    options: Mapping[str, Any],
    multipliers: Sequence[float],
    depths: Sequence[int] = _DEPTHS,
    squeeze: bool = False,
) -> Tensor:
    """The last feature map.

    Args:
        images: `(batch, height, width, channels)`.
        width: what the channels are multiplied by.
        block: class of the blocks.
        options: for the blocks.
        multipliers: the paper's multipliers of the four stages' channels.
        depths: pairs of blocks of each stage.
        squeeze: whether the last pairs have squeeze and excite.
    """
    stem_strides, *strides = stage_strides(images)
    x = relu_block(
        images,
        block,
        scale_channels(min(64, 64 * multipliers[0]), width),
        name="stem",
        kernel_size=3,
        strides=stem_strides,
        padding=1,
        **common_options(options),
    )
    stages = zip(_CHANNELS, multipliers, depths, _SQUEEZED, strides, strict=True)
    for stage, (channels, multiplier, depth, squeezed, stride) in enumerate(stages, start=1):
        for index in range(1, depth + 1):
            name = f"stage{stage}_block{index}"
            settings = {"squeeze": squeeze and index > depth - squeezed, **options}
            x = relu_block(
                x,
                block,
                x.shape[-1],
                name=f"{name}_depthwise",
                kernel_size=3,
                strides=stride if index == 1 else 1,
                padding=1,
                groups=x.shape[-1],
                **settings,
            )
            x = relu_block(
                x,
                block,
                scale_channels(channels * multiplier, width),
                name=f"{name}_pointwise",
                kernel_size=1,
                **settings,
            )
    return x


def _networks(size: str, branches: int = 1, **arguments: Any) -> None:
    """Registers a network and its plain twin.

    Args:
        size: tiny, or s0 to s4.
        branches: number of over-parameterized convolutions of a block.
        **arguments: of `_features`.
    """
    title, name = f"MobileOne-{size.capitalize()}", f"mobileone_{size}"
    plain = f"{name}_plain"
    make = partial(
        classifier,
        features=partial(_features, **arguments),
        kernel_initializer=torch_uniform(),
    )
    make(name, f"{title} (arXiv 2206.04040).", MobileOneBlock, branches=branches)
    make(
        plain,
        f"The plain twin of {title}: one convolution and one batch norm a block.",
        ConvBNBlock,
    )


_networks("tiny", multipliers=(0.25, 0.5, 0.5, 0.25), depths=(1, 2, 3, 1))
_networks("s0", branches=4, multipliers=(0.75, 1, 1, 2))
_networks("s1", multipliers=(1.5, 1.5, 2, 2.5))
_networks("s2", multipliers=(1.5, 2, 2.5, 4))
_networks("s3", multipliers=(2, 2.5, 3, 4))
_networks("s4", multipliers=(3, 3.5, 3.5, 4), squeeze=True)
