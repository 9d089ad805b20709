"""The RepVGG family (arXiv 2101.03697), and its plain twins.

A network is a stem and four stages, all of 3x3 blocks and ReLUs. On ImageNet the stem and
each stage halve the image. Smaller images keep their size for longer: the stem has
stride 1 where the shorter side is at most 64 pixels, so has stage 1 from 32 pixels down
(the geometry of public CIFAR weights), and stage 2 from 16 pixels down. The last feature
map then has at least 3 pixels a side, or 2 from 8 pixels down to 5.

Padding is explicit, one pixel a side, as in PyTorch, so that public weights fit.
"""

from functools import partial

from repq_tf.layers import ConvBNBlock, RepVGGBlock
from repq_tf.models.classifier import classifier, scale_channels, torch_uniform

# The largest image, by its shorter side, that the stem and each stage do not halve.
_NOT_HALVED = (64, 32, 16, 0, 0)

_DEPTHS_A = (2, 4, 14, 1)
_DEPTHS_B = (4, 6, 16, 1)


def _features(images, width, block, options, depths, a, b, groups):
    """The last feature map.

    Args:
        images: `(batch, height, width, channels)`.
        width: what the channels are multiplied by.
        block: class of the blocks.
        options: for the blocks.
        depths: number of blocks of each stage.
        a: the paper's multiplier of all channels but the last stage's.
        b: the paper's multiplier of the last stage's channels.
        groups: of every other convolution.
    """
    options = {"kernel_initializer": torch_uniform(), **options}
    side = min(images.shape[1:3])
    strides = [1 if side <= limit else 2 for limit in _NOT_HALVED]
    depths = (1, *depths)
    channels = (min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b)

    x, layer = images, 0
    for stage, (depth, filters, stride) in enumerate(
        zip(depths, channels, strides, strict=True)
    ):
        for index in range(1, depth + 1):
            x = block(
                scale_channels(filters, width),
                kernel_size=3,
                strides=stride if index == 1 else 1,
                padding=1,
                groups=groups if layer > 0 and layer % 2 == 0 else 1,
                activation="relu",
                name=f"stage{stage}_block{index}" if stage else "stem",
                **options,
            )(x)
            layer += 1
    return x


def _size(name, depths, a, b, groups=1):
    """Makes the two functions of one size: RepVGG's and its plain twin's."""
    title = name.replace("repvgg_", "").capitalize()
    plain = f"{name}_plain"
    features = partial(_features, depths=depths, a=a, b=b, groups=groups)
    return (
        classifier(
            name, f"RepVGG-{title} (arXiv 2101.03697).", RepVGGBlock, features, plain=plain
        ),
        classifier(
            plain,
            f"The plain twin of RepVGG-{title}: one convolution and one batch norm a block.",
            ConvBNBlock,
            features,
        ),
    )


repvgg_a0, repvgg_a0_plain = _size("repvgg_a0", _DEPTHS_A, a=0.75, b=2.5)
repvgg_a1, repvgg_a1_plain = _size("repvgg_a1", _DEPTHS_A, a=1, b=2.5)
repvgg_a2, repvgg_a2_plain = _size("repvgg_a2", _DEPTHS_A, a=1.5, b=2.75)
repvgg_b0, repvgg_b0_plain = _size("repvgg_b0", _DEPTHS_B, a=1, b=2.5)
repvgg_b1, repvgg_b1_plain = _size("repvgg_b1", _DEPTHS_B, a=2, b=4)
repvgg_b1g2, repvgg_b1g2_plain = _size("repvgg_b1g2", _DEPTHS_B, a=2, b=4, groups=2)
repvgg_b1g4, repvgg_b1g4_plain = _size("repvgg_b1g4", _DEPTHS_B, a=2, b=4, groups=4)
repvgg_b2, repvgg_b2_plain = _size("repvgg_b2", _DEPTHS_B, a=2.5, b=5)
repvgg_b2g2, repvgg_b2g2_plain = _size("repvgg_b2g2", _DEPTHS_B, a=2.5, b=5, groups=2)
repvgg_b2g4, repvgg_b2g4_plain = _size("repvgg_b2g4", _DEPTHS_B, a=2.5, b=5, groups=4)
repvgg_b3, repvgg_b3_plain = _size("repvgg_b3", _DEPTHS_B, a=3, b=5)
repvgg_b3g2, repvgg_b3g2_plain = _size("repvgg_b3g2", _DEPTHS_B, a=3, b=5, groups=2)
repvgg_b3g4, repvgg_b3g4_plain = _size("repvgg_b3g4", _DEPTHS_B, a=3, b=5, groups=4)
