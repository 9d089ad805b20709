"""The softmax of a stored tensor, in the integer runtime's arithmetic."""

import numpy as np

from repq_tf.branches import WideReading
from repq_tf.keras_api import ops, register
from repq_tf.layers import runtime
from repq_tf.layers.quantize import Quantize

_DISTANCES = 256  # of an int8 tensor's levels from the largest one


@register
class QuantizedSoftmax(Quantize):
    """`exp(x_i) / sum_j exp(x_j)` over the last axis, in steps of 1/256.

    The runtime looks exponentials up by the distance of a level from the row's largest one,
    adds them one after the other and rounds half up, in float32:

        e_i = exp(-step_in (max_j n_j - n_i)),
        n_out = min(round(e_i (1 / (sum_j e_j / 256))), 255).

    Args:
        **options: those of `Quantize` but for `bits`, `signed` and `step`.

    Input: the features and their step. Output: `(probabilities, step)`.
    """

    STEP = 1 / 256  # what the runtime prescribes

    def __init__(self, **options):
        options.update(bits=8, signed=False, step=self.STEP)
        super().__init__(**options)

    def values(self, x, *steps):
        """The softmax in floating point, in full precision."""
        return ops.softmax(ops.cast(x, self.variable_dtype), axis=-1)

    def integers(self, x, step_in):
        """The levels of the output."""
        levels = runtime.whole(x, step_in)
        distance = ops.max(levels, axis=-1, keepdims=True) - levels
        exponentials = ops.take(self._table(step_in), ops.clip(distance, 0, _DISTANCES - 1))
        # The last of the running sums: `ops.sum` may add in another order.
        total = ops.cumsum(exponentials, axis=-1)[..., -1:]
        rescaled = exponentials * (1 / (total * self.STEP))
        whole = ops.floor(rescaled)
        levels = ops.where(rescaled - whole >= 0.5, whole + 1, whole)
        return ops.minimum(levels, 255)

    def _table(self, step_in):
        """`exp(-step_in n)` for n from 0 to 255, rounded to float32 once."""
        x = -step_in * np.arange(_DISTANCES, dtype=np.float32)
        return ops.cast(ops.exp(ops.cast(x, WideReading.dtype)), step_in.dtype)
