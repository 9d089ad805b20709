"""Sigmoids of stored tensors, in the integer runtime's arithmetic."""

import numpy as np

from repq_tf.keras_api import LEGACY, keras, ops, register
from repq_tf.layers import runtime
from repq_tf.layers.quantize import Quantize

_LOWEST, _HIGHEST = -128, 255  # the levels of all grids that fit the int8 container


class QuantizedGate(Quantize):
    """A function of a stored tensor onto `0 ... 1`, on a fixed unsigned grid of 8 bits.

    Inference looks it up: the input has few levels.

    Args:
        **options: those of `Quantize` but for `bits`, `signed` and `step`.

    Input: the features and their step. Output: `(gate, step)`.
    """

    STEP = None

    def __init__(self, **options):
        options.update(bits=8, signed=False, step=self.STEP)
        super().__init__(**options)

    def table(self, step_in):
        """The output's levels for the input's levels -128 to 255, as the runtime makes them."""
        raise NotImplementedError(f"{type(self).__name__} must implement table")

    def integers(self, x, step_in):
        """The levels of the output."""
        levels = ops.clip(runtime.whole(x, step_in), _LOWEST, _HIGHEST)
        return ops.take(ops.clip(self.table(step_in), 0, 255), levels - _LOWEST)


@register
class QuantizedSigmoid(QuantizedGate):
    """`1 / (1 + exp(-x))` on the grid that the integer runtime prescribes: steps of 1/256.

    The runtime makes a table of `round(float32(sigmoid(x)) * 256 - 128)`, the sigmoid in
    float64, the rest in float32. As a function of x that is a staircase; here it is kept as
    the 255 floats at which it rises.

    Args:
        **options: those of `QuantizedGate`.

    Input: the features and their step. Output: `(gate, step)`.
    """

    STEP = 1 / 256

    def values(self, x, *steps):
        """The function in floating point."""
        return ops.sigmoid(x)

    def table(self, step_in):
        """The levels of the output."""
        x = ops.arange(_LOWEST, _HIGHEST + 1, dtype=step_in.dtype) * step_in
        rises = ops.convert_to_tensor(_SIGMOID_RISES)
        return ops.cast(ops.searchsorted(rises, x, side="right"), step_in.dtype)


def _sigmoid_levels(x):
    """The runtime's levels of `sigmoid(x)`, x float32."""
    sigmoid = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return np.rint(sigmoid * np.float32(256) - np.float32(128)).astype(int) + 128


def _rises():
    """The smallest float32 x with a level of at least k, for k from 1 to 255, by bisection."""
    levels = np.arange(1, 256)
    low, high = np.full(255, -16, np.float32), np.full(255, 16, np.float32)
    while True:
        middle = low + (high - low) / np.float32(2)
        inside = (low < middle) & (middle < high)
        if not inside.any():
            return high
        reached = _sigmoid_levels(middle) >= levels
        high = np.where(inside & reached, middle, high)
        low = np.where(inside & ~reached, middle, low)


_SIGMOID_RISES = _rises()


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

    def values(self, x, *steps):
        """The function in floating point."""
        return keras.activations.hard_sigmoid(x)

    def table(self, step_in):
        """The levels of the output."""
        levels = ops.arange(_LOWEST, _HIGHEST + 1, dtype="int32")
        steps = (ops.cast(step, step_in.dtype) for step in (self.OFFSET_STEP, self.WIDTH / 255))
        offset = ops.full_like(levels, self.OFFSET)
        return runtime.add(levels, offset, step_in, *steps)
