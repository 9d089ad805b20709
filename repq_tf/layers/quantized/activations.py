"""Activations that are operators of their own, in the integer runtime's arithmetic."""

from typing import Any, Unpack

import numpy as np

from repq_tf.arguments import boolean, number
from repq_tf.arithmetic import container_top, sums, wide_dtype
from repq_tf.arithmetic.rescale import rescale, rescale_fixed
from repq_tf.arithmetic.runtimes import add_of, is_fixed
from repq_tf.keras_api import (
    UNCAST,
    Config,
    Identifier,
    Layer,
    LayerOptions,
    Shape,
    Tensor,
    Variable,
    keras,
    ops,
    register,
)
from repq_tf.layers.options import QuantizeOptions
from repq_tf.layers.quantized.quantize import Quantize

# A slope below this is none: the runtime's multiplier must exist.
_SMALLEST_SLOPE = 2.0**-20


def _leaky(x: Tensor, slope: float | Tensor) -> Tensor:
    # At 0, where quantized features often are, the gradient is Keras's: the slope.
    return ops.where(x > 0, x, slope * x)


class _PReLU(keras.layers.PReLU):
    """One whose alpha stays in full precision, which inference computes in."""

    def add_weight(self, **options: Any) -> Variable:
        return super().add_weight(**options, **UNCAST)


@register
class QuantizedPReLU(Quantize):
    """`max(x, 0) + alpha min(x, 0)` on a learned grid, alpha trained for each channel.

    The runtime's own PRELU is a slow reference kernel (about 7.5 ns a value on x86, a
    hundred times an addition). The file holds the same function in operators that are fast:
    two saturating copies of x, its positive and its negative part; a 1x1 depthwise
    convolution, whose scale for each channel is `|alpha|` and whose weight is alpha's sign,
    so that alpha itself is not rounded; and a sum, of which one side is always 0:

        m = round(min(n, 0) sign(alpha) (step_in |alpha| / step)),
        n_out = add(max(n, 0), m), as `QuantizedAdd`, m having the output's step.

    Args:
        alpha_regularizer: of alpha.
        alpha_constraint: of alpha.
        trainable_alpha: whether alpha is trained; the step is, also where it is not.
        **options: those of `Quantize`.

    Input: features `(batch, ..., channels)` and their step. Output: `(y, step)`.
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        alpha_regularizer: Identifier | None = None,
        alpha_constraint: Identifier | None = None,
        trainable_alpha: bool = True,
        **options: Unpack[QuantizeOptions],
    ) -> None:
        super().__init__(bits, signed, **options)
        self.prelu = _PReLU(
            alpha_regularizer=alpha_regularizer,
            alpha_constraint=alpha_constraint,
            trainable=boolean(trainable_alpha, "trainable_alpha"),
            dtype=self.variable_dtype,
            name="prelu",
        )

    def build(self, input_shape: Shape) -> None:
        """Creates the step and alpha."""
        super().build(input_shape)
        self.prelu.build((None, *(1 for _ in input_shape[1:-1]), input_shape[-1]))

    @property
    def trainable_parts(self) -> dict[str, list[Layer]]:
        """What holds alpha, which can be frozen alone."""
        return {"prelu": [self.prelu]}

    @property
    def alpha(self) -> Variable:
        """The slope for negative values, `(1, ..., channels)`."""
        return self.prelu.alpha

    def copy_weights(self, source: Layer) -> None:
        """Takes alpha of a `keras.layers.PReLU`."""
        alpha = ops.convert_to_numpy(source.alpha)
        # A copy: JAX would share the array, and training gives it away.
        self.alpha.assign(np.array(np.broadcast_to(alpha, self.alpha.shape)))

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The activation in floating point."""
        return _leaky(x, ops.cast(self.alpha, x.dtype))

    values_shape = Quantize.values_shape  # it is a function of single values

    def integer_slope(self) -> tuple[Tensor, Tensor]:
        """The sign of alpha, -1, 0 or 1, and its positive scale; `(channels,)` each."""
        alpha = ops.reshape(self.alpha, (-1,))
        size = ops.abs(alpha)
        alive = size >= _SMALLEST_SLOPE
        sign = ops.where(alive, ops.sign(alpha), ops.zeros_like(alpha))
        return sign, ops.where(alive, size, ops.ones_like(size))

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        quantizer = self.activation_quantizer
        step = quantizer.step
        sign, scale = self.integer_slope()
        levels = ops.round(ops.cast(x, step.dtype) / step_in)
        negative = ops.minimum(levels, 0) * sign
        if self.bits <= 8 and not is_fixed(runtime):
            negative = rescale(negative, scale * step_in, step)
        else:
            scale, given = (ops.cast(v, wide_dtype()) for v in (scale, step_in))
            rounding = "away" if self.bits <= 8 else "reduced"
            negative = rescale(negative, scale * given, step, rounding, self.bits)
        top = container_top(self.bits)
        zero = top - quantizer.high
        negative = ops.cast(ops.clip(negative, -top - 1 - zero, top - zero), "int32")
        positive = ops.cast(ops.maximum(levels, 0), "int32")
        levels = add_of(runtime, self.bits)(positive, negative, step_in, step, step)
        return ops.clip(levels, quantizer.low, quantizer.high)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        prelu = self.prelu.get_config()
        return {
            **super().get_config(),
            "alpha_regularizer": prelu["alpha_regularizer"],
            "alpha_constraint": prelu["alpha_constraint"],
            "trainable_alpha": prelu["trainable"],
        }


@register
class QuantizedLeakyReLU(Layer):
    """`max(x, 0) + slope min(x, 0)` on the grid of its input.

    The runtime rounds the slope to 1/256: `n_out = (n round(256 slope) + 128) >> 8` for
    negative n. Training has that slope too. Reference kernels round twice, as of any rescaled
    number.

    Args:
        negative_slope: from 0 to 128.

    Input: features and the step of their grid. Output: features.
    """

    def __init__(self, negative_slope: float = 0.3, **kwargs: Unpack[LayerOptions]) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.negative_slope = number(negative_slope, "negative_slope", least=0, most=128)
        self.numerator = round(256 * negative_slope)

    def values(self, x: Tensor) -> Tensor:
        """The activation in floating point, with the rounded slope."""
        return _leaky(x, self.numerator / 256)

    def call(
        self, x: Tensor, step: Tensor, training: bool = False, runtime: str = "xnnpack"
    ) -> Tensor:
        """The activation: the integer runtime's way, in training in floating point."""
        if training:
            return self.values(x)
        levels = sums.whole(x, step)
        negative = ops.minimum(levels, 0)
        if is_fixed(runtime):
            slope, one = ops.cast(self.numerator / 256, step.dtype), ops.ones_like(step)
            if runtime == "reference":  # whose ratio is one of float32 numbers
                slope = step * slope / step
            negative = ops.cast(rescale_fixed(negative, slope, one), levels.dtype)
        else:
            negative = ops.right_shift(negative * self.numerator + 128, 8)
        levels = ops.where(levels < 0, negative, levels)
        return ops.cast(levels, step.dtype) * step

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {**config, "negative_slope": self.negative_slope}
