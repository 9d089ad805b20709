"""MLPerf Tiny's image classification network, plain and re-parameterized.

The benchmark's `resnet_v1_eembc` (github.com/mlcommons/tiny, image_classification): three basic
blocks of 16, 32 and 64 channels, padded by Keras's rule "same", whose shortcuts are 1x1
convolutions without batch norm, and an average pooling in front of the dense layer. It has
78,666 parameters as built and 77,706 with its batch norms folded. Like all networks here it
ends in logits; the benchmark's own ends in their softmax.
"""

from collections.abc import Mapping
from typing import Any

from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import (
    ACBlock,
    ConvBlock,
    ConvBNBlock,
    DiverseBranchBlock,
    OREPABlock,
    ReparamConv,
    RepVGGBlock,
)
from repq_tf.models.arguments import common_options
from repq_tf.models.classifier import classifier
from repq_tf.models.parts import scale_channels

_HE = "he_normal"  # the benchmark's


def _features(
    images: Tensor, width: float, block: type[ReparamConv], options: Mapping[str, Any]
) -> Tensor:
    """The last feature map; arguments as `classifier`'s."""

    def conv(x: Tensor, channels: int, name: str, **settings: Any) -> Tensor:
        layer = block(channels, kernel_size=3, padding="same", name=name, **settings, **options)
        return layer(x)

    x = conv(images, scale_channels(16, width), "stem", activation="relu")
    for stage in (1, 2, 3):
        channels, stride = scale_channels(8 * 2**stage, width), 1 if stage == 1 else 2
        name = f"stage{stage}"
        y = conv(x, channels, f"{name}_conv1", strides=stride, activation="relu")
        y = conv(y, channels, f"{name}_conv2")
        if stride > 1:
            shortcut = ConvBlock(
                channels,
                kernel_size=1,
                strides=stride,
                padding="same",
                name=f"{name}_shortcut",
                **{"kernel_initializer": _HE, **common_options(options)},
            )
            x = shortcut(x)
        x = keras.layers.Add(name=f"{name}_add")([x, y])
        x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return x


def _pool(x: Tensor) -> Tensor:
    x = keras.layers.AveragePooling2D(x.shape[1:3], name="mean")(x)
    return keras.layers.Flatten(name="flatten")(x)


def _network(prefix: str, of_blocks: str, block: type[ReparamConv], **defaults: Any) -> None:
    summary = f"MLPerf Tiny's ResNet8{of_blocks}."
    classifier(f"{prefix}resnet8", summary, block, _features, _pool, **defaults)


_network("", "", ConvBNBlock, use_bias=True, kernel_initializer=_HE)
_network("ac_", " of ACNet's asymmetric blocks", ACBlock, kernel_initializer=_HE)
_network("dbb_", " of diverse branch blocks", DiverseBranchBlock, kernel_initializer=_HE)
_network("orepa_", " of kernels generated online", OREPABlock)
_network("repvgg_", " of RepVGG's blocks", RepVGGBlock, kernel_initializer=_HE)
