"""Means of stored tensors, in the integer runtime's arithmetic."""

from typing import Unpack

from repq_tf.arguments import boolean
from repq_tf.arithmetic import sums, wide_dtype
from repq_tf.arithmetic.runtimes import is_fixed
from repq_tf.keras_api import Config, Shape, Tensor, ops, register
from repq_tf.layers.options import QuantizeOptions
from repq_tf.layers.quantized.quantize import Quantize


@register
class QuantizedMean(Quantize):
    """The mean over height and width on a learned grid: `(batch, channels)`.

    The runtime sums integers with their zero points and rescales once; see
    `repq_tf.arithmetic.sums`: `mean`, and `mean_wide` with 16 bits and in reference kernels.

    Args:
        keepdims: whether the output is `(batch, 1, 1, channels)`.
        input_zero_point: the integer of the input's container that stands for 0.
        **options: those of `Quantize`.

    Input: the features and their step. Output: `(mean, step)`.
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        keepdims: bool = False,
        input_zero_point: int = 0,
        **options: Unpack[QuantizeOptions],
    ) -> None:
        super().__init__(bits, signed, **options)
        self.keepdims = boolean(keepdims, "keepdims")
        self.input_zero_point = input_zero_point

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The mean in floating point."""
        return ops.mean(x, axis=(1, 2), keepdims=self.keepdims)

    def values_shape(self, *shapes: Shape) -> Shape:
        """The shape of the mean."""
        batch, *pixels, channels = shapes[0]
        return (batch, *(1 for _ in pixels if self.keepdims), channels)

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the mean."""
        quantizer = self.activation_quantizer
        count = ops.convert_to_tensor(ops.shape(x)[1] * ops.shape(x)[2])
        levels = ops.round(ops.cast(x, step_in.dtype) / step_in)
        if self.bits > 8 or is_fixed(runtime):
            levels = ops.cast(levels, wide_dtype())
            total = ops.sum(levels, axis=(1, 2), keepdims=self.keepdims)
            levels = sums.mean_wide(total, count, step_in, quantizer.step)
            return ops.clip(levels, quantizer.low, quantizer.high)
        total = ops.sum(levels, axis=(1, 2), keepdims=self.keepdims)
        count = ops.cast(count, step_in.dtype)
        zeros = self.input_zero_point, 127.0 - quantizer.high
        mean = sums.mean_fused if runtime == "xnnpack_arm" else sums.mean
        levels = mean(total, count, step_in, quantizer.step, *zeros)
        return ops.clip(levels, quantizer.low, quantizer.high)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "keepdims": self.keepdims,
            "input_zero_point": self.input_zero_point,
        }
