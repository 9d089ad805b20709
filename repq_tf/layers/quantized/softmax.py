"""The softmax of a stored tensor, in the integer runtime's arithmetic."""

from typing import Unpack

from repq_tf.arithmetic import sums, tables
from repq_tf.keras_api import Tensor, ops, register
from repq_tf.layers.options import GridOptions
from repq_tf.layers.quantized.quantize import Quantize


@register
class QuantizedSoftmax(Quantize):
    """`exp(x_i) / sum_j exp(x_j)` over the last axis, in steps of 1/256.

    Inference looks exponentials up; see `repq_tf.arithmetic.tables.softmax`.

    Args:
        **options: those of `Quantize` but for `bits`, `signed` and `step`.

    Input: the features and their step. Output: `(probabilities, step)`.
    """

    STEP = 1 / 256  # what the runtime prescribes

    def __init__(self, **options: Unpack[GridOptions]) -> None:
        options.update({"bits": 8, "signed": False, "step": self.STEP})
        super().__init__(**options)

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The softmax in floating point, in full precision."""
        return ops.softmax(ops.cast(x, self.variable_dtype), axis=-1)

    def integers(self, x: Tensor, step_in: Tensor) -> Tensor:
        """The levels of the output."""
        return tables.softmax(sums.whole(x, step_in), step_in)
