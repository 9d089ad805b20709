"""Average pooling of a stored tensor, in the integer runtime's arithmetic."""

from typing import Unpack

from repq_tf.arguments import pair
from repq_tf.arithmetic import sums, wide_dtype
from repq_tf.keras_api import Config, Layer, LayerOptions, Pair, Shape, Tensor, ops, register
from repq_tf.windows import VALID, convolve, same_window


@register
class QuantizedAveragePooling2D(Layer):
    """The average of the pixels of each pool, on the grid of its input.

    The runtime adds the stored integers `q = n + z` of a pool's pixels (those outside the
    image do not count) and divides with rounding half away from zero:
    `n = sign(sum q) ((|sum q| + count // 2) // count) - z`.

    Args:
        pool_size: a number or `(height, width)`.
        strides: likewise; default the pool's size.
        padding: "same" or "valid".
        input_zero_point: z, the integer of the container that stands for 0.

    Input: features and the step of their grid. Output: features.
    """

    def __init__(
        self,
        pool_size: int | Pair = 2,
        strides: int | Pair | None = None,
        padding: str = "valid",
        input_zero_point: int = 0,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.pool_size = pair(pool_size, "pool_size")
        self.strides = self.pool_size if strides is None else pair(strides, "strides")
        self.padding = padding
        self.input_zero_point = input_zero_point

    def build(self, input_shape: Shape) -> None:
        """Checks that the padding is known."""
        if self.padding == "same":
            try:
                same_window(self.pool_size, self.strides, input_shape[1:3])
            except ValueError as error:
                raise ValueError(f"layer {self.name!r}: {error}") from None
        super().build(input_shape)

    def values(self, x: Tensor) -> Tensor:
        """The average in floating point."""
        return ops.average_pool(x, self.pool_size, self.strides, self.padding)

    def call(self, x: Tensor, step: Tensor, training: bool = False) -> Tensor:
        """Averages: the integer runtime's way, in training in floating point."""
        if training:
            return self.values(x)
        stored = ops.round(ops.cast(x, step.dtype) / step) + self.input_zero_point
        stored = ops.cast(stored, wide_dtype())  # 513 levels of 16 bits pass 2^24
        total = ops.cast(self._window_sum(stored), "int32")
        count = ops.cast(self._window_sum(ops.ones_like(stored)), "int32")
        levels = ops.cast(sums.average(total, count), step.dtype) - self.input_zero_point
        return levels * step

    def _window_sum(self, x: Tensor) -> Tensor:
        channels = x.shape[-1]
        ones = ops.ones((*self.pool_size, 1, channels), dtype=x.dtype)
        window = VALID
        if self.padding == "same":
            window = same_window(self.pool_size, self.strides, x.shape[1:3])
        return convolve(x, ones, channels, self.strides, window)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        names = ("pool_size", "strides", "padding", "input_zero_point")
        return {**config, **{name: getattr(self, name) for name in names}}
