"""RepOpt-VGG (arXiv 2205.15242): plain 3x3 networks, and those that search their scales.

The networks are RepVGG's of one convolution and one batch norm a block; what is special is
how they are trained. `repopt_vgg_b1_search` is trained first, on a small set. Then
`repq_tf.optimizers.repopt` makes of its scales the initial kernels and the optimizer of
`repopt_vgg_b1`. Numbers of blocks and channels are the authors' code's.
"""

import math
from functools import partial
from typing import Any

from repq_tf.layers import ConvBNBlock, CSLABlock
from repq_tf.models.classifier import classifier
from repq_tf.models.parts import torch_uniform
from repq_tf.models.repvgg import features, stages


def _start(position: int) -> dict[str, float]:
    """What the scales of a stage's block start at, by its position.

    sqrt(2 / l), l counting the blocks before it, and 1 for the first: as the authors' code
    does. The identity starts at 1.
    """
    return {"scales": math.sqrt(2 / (position - 1)) if position > 1 else 1.0}


def _networks(size: str, **arguments: Any) -> None:
    """Registers the network of one size and its search network.

    Args:
        size: b1, b2, l1 or l2.
        **arguments: of `features`.
    """
    title, name = f"RepOpt-VGG-{size.upper()}", f"repopt_vgg_{size}"
    make = partial(classifier, kernel_initializer=torch_uniform())
    make(
        name,
        f"{title} (arXiv 2205.15242), to be trained with `repq_tf.optimizers.repopt`.",
        ConvBNBlock,
        partial(features, **arguments),
    )
    make(
        f"{name}_search",
        f"{title} of constant-scale blocks, to search the scales (arXiv 2205.15242).",
        CSLABlock,
        partial(features, own_options=_start, **arguments),
        trainable_scales=True,
    )


_networks("b1", **stages((4, 6, 16, 1), 2, 4))
_networks("b2", **stages((4, 6, 16, 1), 2.5, 5))
_networks("l1", **stages((8, 14, 24, 1), 2, 4))
_networks("l2", **stages((8, 14, 24, 1), 2.5, 5))
