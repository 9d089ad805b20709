"""Stored vectors divided by their lengths, in the integer runtime's arithmetic."""

from repq_tf.arithmetic.lengths import unit_levels
from repq_tf.arithmetic.sums import whole
from repq_tf.keras_api import Tensor, ops, register
from repq_tf.layers.quantized.quantize import FixedGrid

# Of a vector of zeros, so that its gradient is 0 and no infinity.
_LEAST_SQUARE = 1e-24


@register
class QuantizedUnitNormalization(FixedGrid):
    """`x / |x|` over the last axis, as of an embedding, in steps of 1/128.

    Inference is that of `repq_tf.arithmetic.lengths.unit_levels`: 1 is 127/128.

    Args:
        **options: those of `FixedGrid`.

    Input: the features and their step. Output: `(vectors, step)`.
    """

    STEP = 1 / 128  # what the runtime prescribes
    SIGNED = True

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The unit vectors in floating point, in full precision."""
        x = ops.cast(x, self.variable_dtype)
        square = ops.sum(ops.square(x), axis=-1, keepdims=True)
        return x * ops.rsqrt(ops.maximum(square, _LEAST_SQUARE))

    values_shape = FixedGrid.values_shape  # the sum does not change it

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        return ops.cast(unit_levels(whole(x, step_in)), step_in.dtype)
