"""LSQ (arXiv 1902.08153) as a function: values on a grid, and the gradient of its step."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from repq_tf.arithmetic import quantize_levels
from repq_tf.keras_api import Array, Tensor, Variable, dtype_name, ops
from repq_tf.quantizers.inside import inside

STEP_GRADIENTS = ("bounded", "lsq")
# The least part of its initial value that a step keeps: a range of 8 bits then is as wide as
# four levels were.
_LEAST = 2.0**-6


def check_step_gradient(step_gradient: str) -> str:
    """Returns `step_gradient`, or raises ValueError listing those there are."""
    if step_gradient not in STEP_GRADIENTS:
        raise ValueError(
            f"step_gradient must be one of {STEP_GRADIENTS}. Received: {step_gradient!r}"
        )
    return step_gradient


def learned_step(initial_step: Tensor, change: Tensor) -> Tensor:
    """`initial_step * (exp(change) if change < 0 else 1 + change)`, positive and finite.

    It is at least 2^-6 of the initial step, whatever an optimizer makes of the change: one that
    a single large gradient shrank further is no grid of its values any more, and integers on
    it pass what runtimes compute with. Changes above 1e8 count as that.
    """
    shrinks, grows = ops.clip(change, math.log(_LEAST), 0.0), ops.clip(change, 0.0, 1e8)
    return initial_step * (ops.exp(shrinks) + grows)


def edge(level: int | Array, step: Tensor) -> Tensor:
    """The value nearest to 0 of which `value / step` is rounded to `level`, or beyond.

    Comparing values with it is comparing `value / step` with the level, to the last bit,
    without dividing: the features of a layer would be divided for nothing else.

    Args:
        level: the lowest or the highest level of a grid, or of each value.
        step: a tensor of positive steps, float32 or float64.
    """
    product = level * step
    below_one = 1.0 - np.finfo(dtype_name(product)).epsneg
    # A rounded product is one floating-point number off at most: behind it, it, and before it.
    found = product / below_one
    for value in (product, product * below_one):
        found = ops.where(ops.abs(value / step) >= abs(level), value, found)
    return found


def lsq(
    x: Tensor,
    initial_step: Tensor,
    change: Tensor,
    low: int | Array,
    high: int | Array,
    gradient_scale: float | Tensor,
    bounded: bool = False,
    counted: Array | None = None,
    odd: bool | Array = False,
) -> Tensor:
    """Fake-quantizes `x` with LSQ's gradients, keeping only `x` and the step for them.

    With `s = initial_step * (exp(change) if change < 0 else 1 + change)` and `v = x / s`:

    - forward: `round(clip(v, low, high)) * s`;
    - to x: 1 inside the range, 0 outside (straight through);
    - of s, as in the paper: `round(v) - v` inside, `low` below, `high` above, summed
      over what shares the step and multiplied by `gradient_scale`.

    The trained variable is the change, so that the step is positive under any optimizer,
    and it receives the gradient of s divided by `ds / dchange = min(s, initial_step)`. A
    gradient step on it then moves s by as much as LSQ's own: to first order where the step
    shrinks, exactly where it grows. (An exponential there let single large gradients throw
    steps out of all proportion; the natural chain rule would slow small steps by s^2.)

    LSQ chose its gradient scale so that a step changes, relative to itself, about as fast
    as the weights do (its section 2.2). That holds for its own large initial steps; with
    the least-error step of 8 bits per channel, whose largest weight lies on the bound,
    the step's rate can be a hundred times the weights', and training diverge. `bounded`,
    which is ours, limits the gradient scale to `s / (rms(e) ||x||)`, where e is the gradient
    of the quantized values by s: for an incoming gradient that is not aligned with e, step
    and weights then change at equal rates. The limit depends on x and s alone, so the
    gradient remains linear, and replicas add theirs up as one device would. Without it, the
    gradient scale is the published one: `step_gradient="lsq"` of `repq_tf.quantize`.

    Args:
        x: a float32 or float64 tensor.
        initial_step: `()` or `(channels,)`, positive; receives no gradient.
        change: of the same shape.
        low: the lowest level, or that of each value, an array of x's shape and dtype.
        high: the highest level, likewise.
        gradient_scale: a number or scalar tensor.
        bounded: whether the gradient scale is limited, as above.
        counted: 1 for the values that the limit looks at, and 0; None for all.
        odd: whether the levels are odd numbers, as of `quantize_levels`.

    Returns:
        A tensor of x's shape and dtype.
    """

    @ops.custom_gradient
    def fake_quantize(
        x: Tensor, initial_step: Tensor, change: Tensor
    ) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
        step = learned_step(initial_step, change)
        quantized = quantize_levels(x, step, low, high, odd) * step

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
            upstream = args[0] if upstream is None else upstream
            to_x, x_inside = inside(x, edge(low, step), edge(high, step), upstream)
            error = quantized - x_inside  # `step` times what is summed
            product = upstream * error
            axes = tuple(range(product.ndim - len(step.shape)))
            to_step = ops.sum(product, axis=axes) / step
            scale = gradient_scale
            if bounded:
                away, size = ops.square(error / step), ops.square(x)
                if counted is not None:
                    away, size = away * counted, size * counted
                square = ops.mean(away, axis=axes) * ops.sum(size, axis=axes)
                scale = ops.minimum(scale, step * ops.rsqrt(ops.maximum(square, 1e-30)))
            to_change = to_step * (scale / ops.minimum(step, initial_step))
            return to_x, ops.zeros_like(initial_step), to_change

        return quantized, gradient

    return fake_quantize(x, initial_step, change)


def fake_quantize(
    x: Tensor,
    initial_step: Variable,
    change: Variable,
    low: int | Array,
    high: int | Array,
    gradient_scale: float | str = "auto",
    per_image: bool = False,
    bounded: bool = False,
    top: float | None = None,
    counted: Array | None = None,
    odd: bool | Array = False,
) -> Tensor:
    """`lsq` of values of any dtype with the step in variables.

    Args:
        x: a tensor; computed in the variables' dtype, returned in its own.
        initial_step: a variable `()` or `(channels,)`.
        change: likewise.
        low: the lowest level, or that of each value.
        high: the highest level, likewise.
        gradient_scale: a number, or "auto": `1 / sqrt(N * top)`, N the number of
            values that share a step.
        per_image: whether the first axis is a batch, which N leaves out.
        bounded: see `lsq`.
        top: the highest level of most values; default: `high`.
        counted: see `lsq`.
        odd: see `lsq`.
    """
    wide = ops.cast(x, change.dtype)
    # Copies, because TensorFlow's custom gradients refuse variables.
    initial = ops.copy(ops.convert_to_tensor(initial_step))
    moved = ops.copy(ops.convert_to_tensor(change))
    if gradient_scale == "auto":
        highest: Any = high if top is None else top
        gradient_scale = _gradient_scale(x, highest, len(moved.shape) > 0, per_image)
    y = lsq(wide, initial, moved, low, high, gradient_scale, bounded, counted, odd)
    return ops.cast(y, x.dtype)


def _gradient_scale(
    x: Tensor, high: float, per_channel: bool, per_image: bool
) -> float | Tensor:
    shape = x.shape[1:] if per_image else x.shape
    if per_channel:
        shape = shape[:-1]
    if all(size is not None for size in shape):
        return 1.0 / math.sqrt(max(math.prod(shape), 1) * high)
    count = ops.cast(ops.size(x), "float32")
    if per_image:
        count = count / ops.cast(ops.shape(x)[0], "float32")
    if per_channel:
        count = count / x.shape[-1]
    return ops.rsqrt(count * high)
