"""The RepVGG family (arXiv 2101.03697), its descendants, and its plain twins.

A network is a stem and four stages (RepVGG-Tiny: three), all of 3x3 blocks and ReLUs. QARepVGG
(arXiv 2212.01593) and OREPA-RepVGG (arXiv 2204.00826) are the same networks of other
blocks, the stem included. Padding is explicit, one pixel a side, as in PyTorch, so that
public weights fit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from repq_tf.keras_api import Tensor
from repq_tf.layers import (
    ConvBNBlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    ReparamConv,
    RepVGGBlock,
)
from repq_tf.models.classifier import classifier
from repq_tf.models.parts import relu_block, scale_channels, stage_strides, torch_uniform

_DEPTHS_A = (2, 4, 14, 1)
_DEPTHS_B = (4, 6, 16, 1)
_DEPTHS_D = (8, 14, 24, 1)


def features(
    images: Tensor,
    width: float,
    block: type[ReparamConv],
    options: Mapping[str, Any],
    depths: Sequence[int],
    channels: Sequence[float],
    groups: int = 1,
    squeeze: bool = False,
    own_options: Callable[[int], Mapping[str, Any]] | None = None,
) -> Tensor:
    """The last feature map.

    Args:
        images: `(batch, height, width, channels)`.
        width: what the channels are multiplied by.
        block: class of the blocks.
        options: for the blocks.
        depths: number of blocks of the stem, which is 1, and of each stage.
        channels: of the stem and of each stage.
        groups: of every other convolution.
        squeeze: whether squeeze and excite follows every block.
        own_options: a function from a block's position in its stage, 1 the first, to options
            of its own, where the user gives none.
    """
    x, layer = images, 0
    strides = stage_strides(images)[: len(depths)]
    for stage, (depth, filters, stride) in enumerate(
        zip(depths, channels, strides, strict=True)
    ):
        for index in range(1, depth + 1):
            x = relu_block(
                x,
                block,
                scale_channels(filters, width),
                name=f"stage{stage}_block{index}" if stage else "stem",
                squeeze=squeeze,
                kernel_size=3,
                strides=stride if index == 1 else 1,
                padding=1,
                groups=groups if layer > 0 and layer % 2 == 0 else 1,
                **{**(own_options(index) if own_options else {}), **options},
            )
            layer += 1
    return x


def stages(depths: Sequence[int], a: float, b: float) -> dict[str, Any]:
    """The stem and the four stages of the papers' networks: arguments of `features`.

    Args:
        depths: number of blocks of each stage.
        a: the multiplier of all channels but the last stage's.
        b: the multiplier of the last stage's channels.
    """
    channels = (min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b)
    return {"depths": (1, *depths), "channels": channels}


def _networks(size: str, **arguments: Any) -> None:
    """Registers all networks of one size, whose arguments are those of `features`."""
    title = f"RepVGG-{size.capitalize()}"
    plain = f"repvgg_{size}_plain"
    make = partial(classifier, features=partial(features, **arguments))
    like_torch = partial(make, kernel_initializer=torch_uniform())
    like_torch(
        plain,
        f"The plain twin of {title}: one convolution and one batch norm a block.",
        ConvBNBlock,
    )
    like_torch(f"repvgg_{size}", f"{title} (arXiv 2101.03697).", RepVGGBlock)
    if not arguments.get("squeeze"):
        like_torch(f"qarepvgg_{size}", f"QA{title} (arXiv 2212.01593).", QARepVGGBlock)
    if size.startswith("a"):
        make(f"orepa_repvgg_{size}", f"OREPA-{title} (arXiv 2204.00826).", OREPARepVGGBlock)


# For microcontrollers and for tables that a laptop makes: ten blocks, of MLPerf Tiny's widths.
_TINY: dict[str, Any] = {"depths": (1, 3, 3, 3), "channels": (16, 16, 32, 64)}
_networks("tiny", **_TINY)
classifier(
    "oabn_repvgg_tiny",
    "RepVGG-Tiny with outlier-aware batch norms, whose gains stay below 2.",
    RepVGGBlock,
    partial(features, **_TINY),
    kernel_initializer=torch_uniform(),
    oabn_k=2.0,
)
_networks("a0", **stages(_DEPTHS_A, 0.75, 2.5))
_networks("a1", **stages(_DEPTHS_A, 1, 2.5))
_networks("a2", **stages(_DEPTHS_A, 1.5, 2.75))
_networks("b0", **stages(_DEPTHS_B, 1, 2.5))
_networks("b1", **stages(_DEPTHS_B, 2, 4))
_networks("b1g2", **stages(_DEPTHS_B, 2, 4), groups=2)
_networks("b1g4", **stages(_DEPTHS_B, 2, 4), groups=4)
_networks("b2", **stages(_DEPTHS_B, 2.5, 5))
_networks("b2g2", **stages(_DEPTHS_B, 2.5, 5), groups=2)
_networks("b2g4", **stages(_DEPTHS_B, 2.5, 5), groups=4)
_networks("b3", **stages(_DEPTHS_B, 3, 5))
_networks("b3g2", **stages(_DEPTHS_B, 3, 5), groups=2)
_networks("b3g4", **stages(_DEPTHS_B, 3, 5), groups=4)
_networks("d2se", **stages(_DEPTHS_D, 2.5, 5), squeeze=True)
