"""ResNets of basic blocks (arXiv 1512.03385), plain and re-parameterized.

Images whose shorter side is above 64 pixels get the ImageNet stem: a 7x7 convolution with
stride 2 and a 3x3 max-pooling with stride 2. Smaller ones get a 3x3 convolution with
stride 1 and no pooling, as is usual on CIFAR. Windows are padded as in PyTorch, by half
the kernel on every side, so that public weights fit.
"""

from functools import partial

from repq_tf.keras_api import keras
from repq_tf.layers import ACBlock, ConvBNBlock
from repq_tf.models.classifier import classifier, common_options, scale_channels

_SMALL_IMAGE = 64


def _features(images, width, block, options, depths):
    """The last feature map.

    Args:
        images: `(batch, height, width, channels)`.
        width: what the channels are multiplied by.
        block: class of the 3x3 convolutions; 7x7 and 1x1 ones stay plain.
        options: for the blocks.
        depths: number of residual blocks of each stage.
    """
    # He's initial values as the authors and torchvision draw them, by fan-out.
    he = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    options = {"kernel_initializer": he, **options}
    plain_options = common_options(options)

    def conv(x, channels, size, **settings):
        """A normalized convolution, padded as in PyTorch."""
        settings |= {"kernel_size": size, "padding": size // 2}
        if size == 3:
            return block(channels, **settings, **options)(x)
        return ConvBNBlock(channels, **settings, **plain_options)(x)

    x = _stem(images, conv, scale_channels(64, width))
    for stage, depth in enumerate(depths, start=1):
        channels = scale_channels(32 * 2**stage, width)
        for index in range(1, depth + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            x = _basic_block(x, conv, channels, stride, f"stage{stage}_block{index}")
    return x


def _stem(images, conv, channels):
    if min(images.shape[1:3]) <= _SMALL_IMAGE:
        return conv(images, channels, 3, activation="relu", name="stem")
    x = conv(images, channels, 7, strides=2, activation="relu", name="stem")
    # After a ReLU, padding with zeros is padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="stem_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)


def _basic_block(x, conv, channels, stride, name):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes change."""
    y = conv(x, channels, 3, strides=stride, activation="relu", name=f"{name}_conv1")
    y = conv(y, channels, 3, name=f"{name}_conv2")
    if stride > 1 or x.shape[-1] != channels:
        x = conv(x, channels, 1, strides=stride, name=f"{name}_shortcut")
    y = keras.layers.Add(name=f"{name}_add")([y, x])
    return keras.layers.ReLU(name=f"{name}_relu")(y)


_resnet18_features = partial(_features, depths=(2, 2, 2, 2))

resnet18 = classifier(
    "resnet18",
    "ResNet-18 (arXiv 1512.03385): 11.69 M parameters.",
    ConvBNBlock,
    _resnet18_features,
)
ac_resnet18 = classifier(
    "ac_resnet18",
    "ResNet-18 whose 3x3 convolutions are ACNet's asymmetric blocks (arXiv 1908.03930).",
    ACBlock,
    _resnet18_features,
    plain="resnet18",
)
