"""Sums and products of stored tensors, in the integer runtime's arithmetic."""

from collections.abc import Callable
from typing import Unpack

from repq_tf.arithmetic.runtimes import add_of, multiply_of
from repq_tf.arithmetic.sums import whole
from repq_tf.keras_api import Config, Identifier, Shape, Tensor, keras, ops, register
from repq_tf.layers.options import QuantizeOptions
from repq_tf.layers.quantized.quantize import Quantize


class QuantizedPair(Quantize):
    """An operator on two stored tensors, with an activation fused into it.

    Args:
        activation: "linear", "relu" or "relu6".
        **options: those of `Quantize`.

    Input: `a`, `b` and their steps. Output: `(result, step)`.
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        activation: Identifier | None = "linear",
        **options: Unpack[QuantizeOptions],
    ) -> None:
        super().__init__(bits, signed, **options)
        self.activation = keras.activations.get(activation)

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """The operator in floating point."""
        raise NotImplementedError(f"{type(self).__name__} must implement combine")

    def combine_levels(self, runtime: str) -> Callable[..., Tensor]:
        """How a runtime makes the levels of the result; see `repq_tf.arithmetic.sums.add`."""
        raise NotImplementedError(f"{type(self).__name__} must implement combine_levels")

    def values(self, a: Tensor, b: Tensor, *steps: Tensor) -> Tensor:
        """The result in floating point."""
        self.values_shape(a.shape, b.shape)
        return self.activation(self.combine(a, ops.cast(b, a.dtype)))

    def values_shape(self, *shapes: Shape) -> Shape:
        """The shape that both inputs are broadcast to."""
        left, right = shapes
        sizes = list(zip(left, right, strict=False))
        if len(left) != len(right) or not all(a == b or {a, b} & {1, None} for a, b in sizes):
            raise ValueError(
                f"layer {self.name!r}: both inputs must have the same number of dimensions, "
                f"equal but for those of size 1. Received: shapes {tuple(left)} and "
                f"{tuple(right)}"
            )
        return tuple(b if a in (1, None) and b != 1 else a for a, b in sizes)

    def integers(
        self,
        a: Tensor,
        b: Tensor,
        step_a: Tensor,
        step_b: Tensor,
        runtime: str = "xnnpack",
    ) -> Tensor:
        """The levels of the result."""
        quantizer = self.activation_quantizer
        left, right = whole(a, step_a), whole(b, step_b)
        levels = self.combine_levels(runtime)(left, right, step_a, step_b, self.step)
        top = self.activation(ops.full((), 1e30, dtype=levels.dtype)) / quantizer.step
        levels = ops.minimum(levels, ops.round(ops.minimum(top, 1e6)))
        return ops.clip(levels, quantizer.low, quantizer.high)

    def call(
        self,
        a: Tensor,
        b: Tensor,
        step_a: Tensor,
        step_b: Tensor,
        training: bool = False,
        runtime: str = "xnnpack",
    ) -> tuple[Tensor, Tensor]:
        """Returns the quantized result and the step."""
        if training:
            return self._fake_quantize(self.values(a, b)), self.step
        return self.integers(a, b, step_a, step_b, runtime) * self.step, self.step

    def compute_output_spec(
        self,
        a: Tensor,
        b: Tensor,
        step_a: Tensor,
        step_b: Tensor,
        training: bool = False,
        runtime: str = "xnnpack",
    ) -> tuple[Tensor, Tensor]:
        """The shapes and dtypes of `call`'s outputs, without tracing it."""
        return self._specs(training, a, b)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}


@register
class QuantizedAdd(QuantizedPair):
    """`activation(a + b)` on a learned grid: a residual sum.

    The runtime adds in fixed point; see `repq_tf.arithmetic.sums`: `add`, and `add_wide` with
    16 bits.

    Args:
        **options: those of `QuantizedPair`.

    Input: `a`, `b` and their steps. Output: `(sum, step)`.
    """

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum."""
        return a + b

    def combine_levels(self, runtime: str) -> Callable[..., Tensor]:
        """How a runtime adds levels."""
        return add_of(runtime, self.bits)


@register
class QuantizedMultiply(QuantizedPair):
    """`activation(a * b)` on a learned grid; shapes are broadcast.

    The runtime rescales the products of integers in float32:
    `n = round(n_a n_b (step_a step_b / step))`; see `repq_tf.arithmetic.sums.multiply`.

    Args:
        **options: those of `QuantizedPair`.

    Input: `a`, `b` and their steps. Output: `(product, step)`.
    """

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """The product."""
        return a * b

    def combine_levels(self, runtime: str) -> Callable[..., Tensor]:
        """How a runtime multiplies levels."""
        return multiply_of(runtime)


@register
class QuantizedSubtract(QuantizedPair):
    """`activation(a - b)` on a learned grid.

    The runtime computes it as a sum in fixed point in which b's factor is negative; see
    `repq_tf.arithmetic.sums.add`.

    Args:
        **options: those of `QuantizedPair`.

    Input: `a`, `b` and their steps. Output: `(difference, step)`.
    """

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """The difference."""
        return a - b

    def combine_levels(self, runtime: str) -> Callable[..., Tensor]:
        """How a runtime subtracts levels."""
        add = add_of(runtime, self.bits)
        return lambda a, b, *steps: add(a, -b, *steps)
