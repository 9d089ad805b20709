"""The softmax of a stored tensor, in the integer runtime's arithmetic."""

from repq_tf.arithmetic.runtimes import softmax_of
from repq_tf.arithmetic.sums import whole
from repq_tf.keras_api import Tensor, ops, register
from repq_tf.layers.quantized.quantize import FixedGrid


@register
class QuantizedSoftmax(FixedGrid):
    """`exp(x_i) / sum_j exp(x_j)` over the last axis, in steps of 1/256.

    Inference looks exponentials up; see `repq_tf.arithmetic.tables.softmax`.

    Args:
        **options: those of `FixedGrid`.

    Input: the features and their step. Output: `(probabilities, step)`.
    """

    STEP = 1 / 256  # what the runtime prescribes

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The softmax in floating point, in full precision."""
        return ops.softmax(ops.cast(x, self.variable_dtype), axis=-1)

    values_shape = FixedGrid.values_shape  # the sum does not change it

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        return softmax_of(runtime)(whole(x, step_in), step_in)
