"""Sigmoids of stored tensors, in the integer runtime's arithmetic."""

from repq_tf.arithmetic import sums, tables
from repq_tf.arithmetic.runtimes import add_of
from repq_tf.keras_api import LEGACY, Tensor, keras, ops, register
from repq_tf.layers.quantized.quantize import FixedGrid


class QuantizedGate(FixedGrid):
    """A function of single values onto `0 ... 1`.

    Inference looks it up: the input has few levels.

    Args:
        **options: those of `FixedGrid`.

    Input: the features and their step. Output: `(gate, step)`.
    """

    def table(self, step_in: Tensor, runtime: str) -> Tensor:
        """The output's levels for the input's levels -128 to 255, as a runtime makes them."""
        raise NotImplementedError(f"{type(self).__name__} must implement table")

    def integers(self, x: Tensor, step_in: Tensor, runtime: str = "xnnpack") -> Tensor:
        """The levels of the output."""
        table = ops.clip(self.table(step_in, runtime), 0, 255)
        return tables.look_up(table, sums.whole(x, step_in))


@register
class QuantizedSigmoid(QuantizedGate):
    """`1 / (1 + exp(-x))` on the grid that the integer runtime prescribes: steps of 1/256.

    Inference is that of `repq_tf.arithmetic.tables.sigmoid`.

    Args:
        **options: those of `QuantizedGate`.

    Input: the features and their step. Output: `(gate, step)`.
    """

    STEP = 1 / 256

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The function in floating point."""
        return ops.sigmoid(x)

    values_shape = FixedGrid.values_shape  # it is a function of single values

    def table(self, step_in: Tensor, runtime: str) -> Tensor:
        """The levels of the output."""
        return tables.sigmoid(step_in)


@register
class QuantizedHardSigmoid(QuantizedGate):
    """`relu6(x + 3) / 6`, Keras's hard sigmoid, in steps of 1/255.

    The file adds 3 on a grid whose ends are 0 and 6, so that its saturation is the clamp,
    and multiplies by 1/6, which only renames the levels:
    `n_out = add(n, 96)`, as `QuantizedAdd`, with steps `step_in`, 1/32 and 6/255. (tf_keras's
    hard sigmoid is `clip(x / 5 + 1/2, 0, 1)`, which has 5 for 6 and 5/2 for 3.)

    Args:
        **options: those of `QuantizedGate`.

    Input: the features and their step. Output: `(gate, step)`.
    """

    STEP = 1 / 255
    WIDTH = 5 if LEGACY else 6  # of x from 0 to 1
    OFFSET_STEP = 1 / 32
    OFFSET = WIDTH * 16  # half the width, in these steps

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """The function in floating point."""
        return keras.activations.hard_sigmoid(x)

    values_shape = FixedGrid.values_shape  # it is a function of single values

    def table(self, step_in: Tensor, runtime: str) -> Tensor:
        """The levels of the output."""
        steps = step_in, self.OFFSET_STEP, self.WIDTH / 255
        return tables.shifted(self.OFFSET, *steps, add_of(runtime, self.bits))
