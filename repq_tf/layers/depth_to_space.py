"""Depth to space: the upscaling at the end of super-resolution networks."""

from typing import Unpack

from repq_tf.arguments import positive
from repq_tf.keras_api import Config, Layer, LayerOptions, Shape, Tensor, backend, ops, register


def depth_to_space(x: Tensor, size: int) -> Tensor:
    """Makes squares of `size` pixels out of the channels of each pixel; see `DepthToSpace`."""
    if size == 1:
        return x
    if backend() == "tensorflow":  # one operator of the exported file
        import tensorflow as tf

        return tf.nn.depth_to_space(x, size)
    batch, height, width, channels = ops.shape(x)
    channels //= size**2
    x = ops.reshape(x, (batch, height, width, size, size, channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (batch, height * size, width * size, channels))


@register
class DepthToSpace(Layer):
    """Makes of every pixel a square of pixels, out of its channels.

    `y[h s + i, w s + j, c] = x[h, w, (i s + j) C + c]`, C the number of output channels:
    TensorFlow's order of channels. PyTorch's pixel shuffle takes `x[h, w, c s^2 + i s + j]`,
    which is the same for one channel.

    Args:
        block_size: s, the height and width of the squares; at least 2.

    Input: `(batch, height, width, s^2 C)`. Output: `(batch, s height, s width, C)`.

    Example:
        >>> y = repq_tf.layers.DepthToSpace(2)(x)
    """

    def __init__(self, block_size: int, **kwargs: Unpack[LayerOptions]) -> None:
        super().__init__(**kwargs)
        self.block_size = positive(block_size, "block_size")
        if block_size == 1:
            raise ValueError("block_size must be at least 2. Received: 1")

    def build(self, input_shape: Shape) -> None:
        """Checks the number of channels."""
        if input_shape[-1] % self.block_size**2:
            raise ValueError(
                f"{self.name}: the number of channels must be a multiple of "
                f"{self.block_size**2}. Received: {input_shape[-1]}"
            )
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        """Rearranges the channels."""
        return depth_to_space(x, self.block_size)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """`(batch, s height, s width, C)`."""
        batch, *spatial, channels = input_shape
        spatial = [None if n is None else n * self.block_size for n in spatial]
        return batch, *spatial, channels // self.block_size**2

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {**super().get_config(), "block_size": self.block_size}
