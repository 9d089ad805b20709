"""Learned step size quantization (LSQ, arXiv 1902.08153), for weights and activations."""

import functools
from typing import Any

import numpy as np

from repq_tf.arguments import boolean, check_bits, number, positive
from repq_tf.arithmetic import ACTIVATION_BITS, inference_levels, levels, quantize_levels
from repq_tf.keras_api import (
    Array,
    Config,
    Layer,
    Shape,
    Tensor,
    Variable,
    add_parameter,
    add_statistic,
    ops,
    register,
)
from repq_tf.quantizers.lsq import fake_quantize, learned_step
from repq_tf.quantizers.ranges import VALUE_RULES
from repq_tf.quantizers.step_init import lsq_step, usual_step

# Range rules that look at the error of rounding, and so at the levels that there are.
_ODD_RULES = ("min_error", "mae", "lsq")
# Of the others' step, for values that are all 0, which odd levels lack.
_NOTHING = 2.0**-20


@register
class LSQ(Layer):
    """An LSQ quantizer: a grid of `2^bits` levels whose step is learned.

    Args:
        bits: 2 to 8, or 16.
        signed: whether the grid has negative levels.
        narrow: whether a signed grid drops its lowest level; default: at 8 bits.
        channels: number of steps, one for each index of the last axis; None: one step.
        gradient_scale: "auto" is LSQ's `1 / sqrt(N * Q_P)`, N the number of values that
            share a step (of one image, for activations); or a number.
        per_image: whether the first axis is a batch, which N leaves out.
        bounded: whether the gradient scale is limited so that the step changes about as
            fast as the values; see `lsq`.
            Default: for weights (not `per_image`) with the automatic scale.
        trainable_step: whether the step is learned; fixed otherwise, also in a model whose
            layers are frozen and thawed.
        odd: whether the levels are the odd numbers from `1 - 2^bits` to `2^bits - 1`, of a
            signed grid of at most 7 bits. At 2 bits they are -3, -1, 1, 3: symmetric, with
            the zero that bell-shaped weights do not need given up for a fourth level, where
            -2, -1, 0, 1 has one negative level that few weights reach. The step is the
            distance of 1 from 0, half of that between levels. A channel of nothing but zeros
            gets a step of a millionth of the others'.
        mirrored: whether a signed grid of at most 7 bits, not a narrow one, has the one level
            more above 0: -1, 0, 1, 2 of 2 bits, for features that are rarely negative.

    Example:
        >>> quantizer = LSQ(bits=4, signed=False, per_image=True)
        >>> quantizer.build(None)
        >>> quantizer.initialize(features)       # MinError
        >>> y = quantizer(features)              # on the grid, differentiable
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        narrow: bool | None = None,
        channels: int | None = None,
        gradient_scale: float | str = "auto",
        per_image: bool = False,
        bounded: bool | None = None,
        trainable_step: bool = True,
        odd: bool = False,
        mirrored: bool = False,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False, **kwargs)
        self.bits = check_bits(bits, allowed=ACTIVATION_BITS)
        self.signed = boolean(signed, "signed")
        narrow = boolean(narrow, "narrow", optional=True)
        self.narrow = bits == 8 if narrow is None else narrow
        self.channels = None if channels is None else positive(channels, "channels")
        if gradient_scale != "auto":
            number(gradient_scale, "gradient_scale, if it is not 'auto',", least=0)
        self.gradient_scale = gradient_scale
        self.per_image = boolean(per_image, "per_image")
        auto = not per_image and gradient_scale == "auto"
        bounded = boolean(bounded, "bounded", optional=True)
        self.bounded = auto if bounded is None else bounded
        self.trainable_step = boolean(trainable_step, "trainable_step")
        self.odd = boolean(odd, "odd")
        if self.odd and not (self.signed and self.bits <= 7):
            kind = "a signed" if self.signed else "an unsigned"
            raise ValueError(
                f"odd levels must be of a signed grid of at most 7 bits. Received: {kind} grid "
                f"of {self.bits} bits"
            )
        self.mirrored = boolean(mirrored, "mirrored")
        if self.mirrored and (not self.signed or self.narrow or self.odd or self.bits > 7):
            raise ValueError(
                "a mirrored grid must be signed, of at most 7 bits, and neither narrow nor odd."
                f" Received: signed={signed}, bits={bits}, narrow={self.narrow}, odd={odd}"
            )
        self.low, self.high = levels(
            self.bits, self.signed, self.narrow, self.odd, self.mirrored
        )

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the step, as a fixed initial value and a trained change of it."""
        shape = () if self.channels is None else (self.channels,)
        # The change first: files hold trainable variables before the others.
        self.change = add_parameter(
            self, "step_change", shape, "zeros", trainable=self.trainable_step
        )
        self.initial_step = add_statistic(self, "initial_step", shape, "ones")
        self.built = True

    @property
    def step(self) -> Tensor:
        """The step, `()` or `(channels,)`, a positive tensor."""
        return learned_step(
            ops.convert_to_tensor(self.initial_step), ops.convert_to_tensor(self.change)
        )

    def set_step(self, step: Tensor) -> None:
        """Sets the step, and the point that weight decay would pull it to.

        Raises:
            ValueError: a step is not a positive number.
        """
        values = ops.convert_to_numpy(step)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"step must be positive and finite. Received: {values}")
        self.initial_step.assign(ops.broadcast_to(step, self.initial_step.shape))
        self.change.assign(ops.zeros(self.change.shape, self.change.dtype))

    def bounds(self, shape: Shape) -> tuple[int | Array, int | Array]:
        """The lowest and the highest level, or those of each value of a shape."""
        return self.low, self.high

    def odd_levels(self, shape: Shape) -> bool | Array:
        """Whether levels are odd numbers, or which values of a shape have such."""
        return self.odd

    @property
    def is_uniform(self) -> bool:
        """Whether every value has the same levels, all integers between two bounds."""
        return not self.odd

    @property
    def _half(self) -> float:
        """Half the distance of two levels, in steps."""
        return 1.0 if self.odd else 0.5

    @property
    def _gradient_top(self) -> float:
        """What LSQ's gradient scale takes for Q_P.

        Between odd levels lie two steps: with S of them LSQ's step and `S Q_P` the same upper
        end, the scale that changes the half as fast, relative to itself, is a quarter.
        """
        return 8.0 * self.high if self.odd else self.high

    def initialize(self, values: Tensor, method: str = "min_error") -> None:
        """Sets the step from data: by `min_error` (default), another range rule or `lsq`.

        Args:
            values: a tensor; of the weight, or of the first calibration batch.
            method: "min_error" minimises the squared error by a logarithmic search;
                "max", "percentile", "mae" and "kl" are the range rules of
                `repq_tf.quantize`; "lsq" is `2 mean|v| / sqrt(Q_P)`.
                Of a kernel of zeros, where training begins at some, the step is that of a
                largest weight of `1 / sqrt(n)`, for n weights of a filter.
        """
        methods = {**VALUE_RULES, "lsq": lsq_step}
        if method not in methods:
            raise ValueError(f"method must be one of {list(methods)}. Received: {method!r}")
        per_channel = self.channels is not None
        values = ops.convert_to_numpy(values)  # a search of many small steps costs less there
        rule = methods[method]
        if self.odd and method in _ODD_RULES:
            rule = functools.partial(rule, odd=True)
        step = rule(values, self.low, self.high, per_channel)
        if not self.per_image and not values.any():
            step = np.full_like(step, usual_step(values.shape, self.high))
        if self.odd:
            rows = values.reshape(-1, self.channels or values.size).T
            empty = ~np.any(rows if per_channel else rows.ravel()[None], axis=1)
            step = np.where(empty if per_channel else empty[0], step * _NOTHING, step)
        self.set_step(step)

    def integers(self, x: Tensor) -> Tensor:
        """The levels of `x`, whole numbers as floats, in inference."""
        return inference_levels(
            x, self.step, *self.bounds(x.shape), odd=self.odd_levels(x.shape)
        )

    def kernel_integers(self, x: Tensor) -> Tensor:
        """The levels of a kernel that the file holds, whole numbers in x's dtype."""
        step = ops.cast(self.step, x.dtype)
        return quantize_levels(x, step, *self.bounds(x.shape), self.odd_levels(x.shape))

    def distance(self, x: Tensor) -> Tensor:
        """The squared distance of a kernel's weights from their levels, summed.

        `sum (q - clip(x, low s, high s))^2` with q the quantized kernel and s the step, which
        receive no gradient: the dampening of oscillations of arXiv 2203.11086, its Eq. 4.
        """
        low, high = self.bounds(x.shape)
        step, quantized = ops.stop_gradient(self.step), ops.stop_gradient(self(x))
        x = ops.cast(x, step.dtype)
        clipped = ops.clip(x, low * step, high * step)
        return ops.sum(ops.square(ops.cast(quantized, step.dtype) - clipped))

    def call(self, x: Tensor) -> Tensor:
        """Fake-quantizes `x`; computed in float32 at least, returned in x's dtype."""
        return self.rounded(x, self.initial_step, self.change)

    def rounded(self, x: Tensor, initial_step: Variable, change: Variable) -> Tensor:
        """What `call` returns, with a step that is kept elsewhere.

        Args:
            x: a tensor.
            initial_step: a variable or tensor like the quantizer's own.
            change: a variable like the quantizer's own.
        """
        return fake_quantize(
            x,
            initial_step,
            change,
            self.low,
            self.high,
            self.gradient_scale,
            self.per_image,
            self.bounded,
            self._gradient_top,
            odd=self.odd,
        )

    def clip_rate(self, x: Tensor) -> Tensor:
        """The share of values beyond the outer levels by more than half their distance."""
        v, half = ops.cast(x, self.change.dtype) / self.step, self._half
        outside = ops.logical_or(v < self.low - half, v > self.high + half)
        return ops.mean(ops.cast(outside, "float32"))

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "signed": self.signed,
            "narrow": self.narrow,
            "channels": self.channels,
            "gradient_scale": self.gradient_scale,
            "per_image": self.per_image,
            "bounded": self.bounded,
            "trainable_step": self.trainable_step,
            "odd": self.odd,
            "mirrored": self.mirrored,
        }
