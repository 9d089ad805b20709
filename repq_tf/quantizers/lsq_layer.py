"""Learned step size quantization (LSQ, arXiv 1902.08153), for weights and activations."""

from typing import Any

import numpy as np

from repq_tf.arguments import boolean, check_bits, number, positive
from repq_tf.arithmetic import ACTIVATION_BITS, inference_levels, levels
from repq_tf.keras_api import (
    Array,
    Config,
    Layer,
    Shape,
    Tensor,
    add_parameter,
    add_statistic,
    ops,
    register,
)
from repq_tf.quantizers.lsq import fake_quantize, learned_step
from repq_tf.quantizers.ranges import VALUE_RULES
from repq_tf.quantizers.step_init import lsq_step


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
        self.low, self.high = levels(self.bits, self.signed, self.narrow)

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

    def initialize(self, values: Tensor, method: str = "min_error") -> None:
        """Sets the step from data: by `min_error` (default), another range rule or `lsq`.

        Args:
            values: a tensor; of the weight, or of the first calibration batch.
            method: "min_error" minimises the squared error by a logarithmic search;
                "max", "percentile", "mae" and "kl" are the range rules of
                `repq_tf.quantize`; "lsq" is `2 mean|v| / sqrt(Q_P)`.
        """
        methods = {**VALUE_RULES, "lsq": lsq_step}
        if method not in methods:
            raise ValueError(f"method must be one of {list(methods)}. Received: {method!r}")
        per_channel = self.channels is not None
        values = ops.convert_to_numpy(values)  # a search of many small steps costs less there
        self.set_step(methods[method](values, self.low, self.high, per_channel))

    def integers(self, x: Tensor) -> Tensor:
        """The levels of `x`, whole numbers as floats, in inference."""
        return inference_levels(x, self.step, self.low, self.high)

    def call(self, x: Tensor) -> Tensor:
        """Fake-quantizes `x`; computed in float32 at least, returned in x's dtype."""
        return fake_quantize(
            x,
            self.initial_step,
            self.change,
            self.low,
            self.high,
            self.gradient_scale,
            self.per_image,
            self.bounded,
        )

    def clip_rate(self, x: Tensor) -> Tensor:
        """The share of values outside the grid's range by more than half a step."""
        v = ops.cast(x, self.change.dtype) / self.step
        outside = ops.logical_or(v < self.low - 0.5, v > self.high + 0.5)
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
        }
