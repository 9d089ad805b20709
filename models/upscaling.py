"""What networks of super resolution have in common: all around their blocks."""

from collections.abc import Callable, Sequence

from repq_tf.arguments import positive
from repq_tf.keras_api import Tensor, keras
from repq_tf.layers import DepthToSpace
from repq_tf.models.arguments import check_input_shape

DOCUMENTATION = """{summary}

    Args:
        scale: how many times larger the image becomes, at least 2.
        channels: number of channels of the image: 1, the luma, or 3.
        input_shape: `(height, width, channels)` of the images. Default: any size.{arguments}

    Returns:
        A Functional `keras.Model` from images to images.

    Example:
        >>> model = repq_tf.models.{name}(scale=2)
    """


def upscaling_network(
    name: str,
    blocks: Callable[[Tensor, int], Tensor],
    scale: int,
    channels: int,
    input_shape: Sequence[int | None] | None,
) -> keras.Model:
    """The network that adds to every pixel's copies what its blocks say, and upscales.

    Args:
        name: of the network.
        blocks: `function(images, filters)` that returns features of so many channels.
        scale: how many times larger the image becomes.
        channels: number of channels of the image.
        input_shape: `(height, width, channels)`, or None for images of any size.
    """
    scale, channels = positive(scale, "scale"), positive(channels, "channels")
    if scale == 1:
        raise ValueError("scale must be at least 2. Received: 1")
    if input_shape is None:
        input_shape = (None, None, channels)
    input_shape = check_input_shape(input_shape, unknown_size=True)
    if input_shape[-1] != channels:
        raise ValueError(
            f"input_shape must end in channels, {channels}. Received: {input_shape}"
        )
    images = keras.Input(input_shape, name="image")
    x = blocks(images, channels * scale**2)
    copies = keras.layers.Concatenate(name="copies")([images] * scale**2)
    x = keras.layers.Add(name="add")([x, copies])
    return keras.Model(images, DepthToSpace(scale, name="upscaled")(x), name=name)
