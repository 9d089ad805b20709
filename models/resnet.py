"""ResNets (arXiv 1512.03385), plain and re-parameterized.

ResNet-18 and -34 are made of basic blocks, ResNet-50 of bottlenecks with the stride in
the 3x3 convolution ("v1.5"). Images whose shorter side is above 64 pixels get the ImageNet
stem: a 7x7 convolution with stride 2 and a 3x3 max-pooling with stride 2. Smaller ones
get a 3x3 convolution with stride 1 and no pooling, as is usual on CIFAR. Windows are padded
as in PyTorch, by half the kernel on every side, so that public weights fit.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import (
    ACBlock,
    ConvBNBlock,
    DiverseBranchBlock,
    OREPABlock,
    OREPAStem,
    ReparamConv,
)
from repq_tf.models.arguments import common_options
from repq_tf.models.classifier import classifier
from repq_tf.models.parts import scale_channels

_SMALL_IMAGE = 64


def _he() -> keras.initializers.Initializer:
    """He's initial values as the authors and torchvision draw them, by fan-out."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def _features(
    images: Tensor,
    width: float,
    block: type[ReparamConv],
    options: Mapping[str, Any],
    blocks: Mapping[int, type[ReparamConv]],
    residual: Callable[..., Tensor],
    depths: Sequence[int],
) -> Tensor:
    """The last feature map.

    Args:
        images: `(batch, height, width, channels)`.
        width: what the channels are multiplied by.
        block: class of the 3x3 convolutions.
        options: for the blocks.
        blocks: class of the convolutions by kernel size: 1, 3 and 7.
        residual: adds a residual block: `residual(x, conv, channels, stride, name)`.
        depths: number of residual blocks of each stage.
    """
    plain_options = {"kernel_initializer": _he(), **common_options(options)}

    def conv(
        x: Tensor,
        channels: int,
        size: int,
        kind: type[ReparamConv] | None = None,
        **settings: Any,
    ) -> Tensor:
        """A normalized convolution, padded as in PyTorch."""
        kind = kind or blocks[size]
        settings |= options if issubclass(kind, block) else plain_options
        return kind(channels, kernel_size=size, padding=size // 2, **settings)(x)

    x = _stem(images, conv, scale_channels(64, width))
    for stage, depth in enumerate(depths, start=1):
        channels = scale_channels(32 * 2**stage, width)
        for index in range(1, depth + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            x = residual(x, conv, channels, stride, f"stage{stage}_block{index}")
    return x


def _stem(images: Tensor, conv: Callable[..., Tensor], channels: int) -> Tensor:
    if min(images.shape[1:3]) <= _SMALL_IMAGE:
        return conv(images, channels, 3, activation="relu", name="stem")
    x = conv(images, channels, 7, strides=2, activation="relu", name="stem")
    # After a ReLU, padding with zeros is padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def _basic_block(
    x: Tensor, conv: Callable[..., Tensor], channels: int, stride: int, name: str
) -> Tensor:
    """Two 3x3 convolutions and a shortcut, which is a plain 1x1 one where shapes change."""
    y = conv(x, channels, 3, strides=stride, activation="relu", name=f"{name}_conv1")
    y = conv(y, channels, 3, name=f"{name}_conv2")
    if stride > 1 or x.shape[-1] != channels:
        x = conv(x, channels, 1, ConvBNBlock, strides=stride, name=f"{name}_shortcut")
    return _add(x, y, name)


def _bottleneck(
    x: Tensor, conv: Callable[..., Tensor], channels: int, stride: int, name: str
) -> Tensor:
    """1x1, 3x3 and 1x1 to four times the channels; the shortcut is 1x1 where shapes change."""
    y = conv(x, channels, 1, activation="relu", name=f"{name}_conv1")
    y = conv(y, channels, 3, strides=stride, activation="relu", name=f"{name}_conv2")
    y = conv(y, 4 * channels, 1, name=f"{name}_conv3")
    if stride > 1 or x.shape[-1] != 4 * channels:
        x = conv(x, 4 * channels, 1, strides=stride, name=f"{name}_shortcut")
    return _add(x, y, name)


def _add(x: Tensor, y: Tensor, name: str) -> Tensor:
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(y)


_SIZES: dict[int, dict[str, Any]] = {
    18: {"residual": _basic_block, "depths": (2, 2, 2, 2)},
    34: {"residual": _basic_block, "depths": (3, 4, 6, 3)},
    50: {"residual": _bottleneck, "depths": (3, 4, 6, 3)},
}


def _networks(
    family: str,
    summary: str,
    block: type[ReparamConv],
    pointwise: type[ReparamConv] = ConvBNBlock,
    stem: type[ReparamConv] = ConvBNBlock,
    **defaults: Any,
) -> None:
    """Registers the networks of a family, one for each size.

    Args:
        family: what their names begin with.
        summary: their documentation, with {} for the size.
        block: class of the 3x3 convolutions.
        pointwise: class of the 1x1 ones.
        stem: class of the 7x7 one.
        **defaults: options of the blocks.
    """
    blocks = {1: pointwise, 3: block, 7: stem}
    for size, arguments in _SIZES.items():
        features = partial(_features, blocks=blocks, **arguments)
        classifier(
            f"{family}{size}",
            summary.format(size),
            block,
            features,
            **defaults,
        )


_networks("resnet", "ResNet-{} (arXiv 1512.03385).", ConvBNBlock, kernel_initializer=_he())
_networks(
    "ac_resnet",
    "ResNet-{} whose 3x3 convolutions are ACNet's asymmetric blocks (arXiv 1908.03930).",
    ACBlock,
    kernel_initializer=_he(),
)
_networks(
    "dbb_resnet",
    "ResNet-{} whose 3x3 convolutions are diverse branch blocks (arXiv 2103.13425).",
    DiverseBranchBlock,
    kernel_initializer=_he(),
)
_networks(
    "orepa_resnet",
    "ResNet-{} whose kernels are generated online (OREPA, arXiv 2204.00826): all but those\n"
    "    of basic blocks' shortcuts, the 7x7 stem's by the deep linear one.",
    OREPABlock,
    pointwise=OREPABlock,
    stem=OREPAStem,
)
