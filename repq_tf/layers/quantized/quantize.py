"""Quantizers of stored activation tensors, as layers of the model.

A quantized tensor travels with its step: these layers return `(tensor, step)`, and
so do quantized blocks. In training they fake-quantize; in inference they compute what the
integer runtime (LiteRT with XNNPACK) computes, in its order and its rounding.
"""

from typing import Any, Unpack

from repq_tf.arguments import boolean, number
from repq_tf.arithmetic import operator_zero_point, zero_point
from repq_tf.arithmetic.rescale import rescale
from repq_tf.keras_api import (
    Config,
    Layer,
    LayerOptions,
    Shape,
    Tensor,
    keras,
    ops,
    overrides,
    register,
)
from repq_tf.layers.options import GridOptions
from repq_tf.quantizers import LSQ


@register
class Quantize(Layer):
    """Rounds an activation tensor to a learned grid and hands the grid's step on.

    One stands behind every tensor that the integer runtime stores. Tensors that must
    share one scale (the inputs of a concatenation) go through one shared layer.
    `repq_tf.quantize` places them and sets their steps; in a model written by hand they start
    at 1, and `layer.activation_quantizer.initialize(features)` sets them.

    Args:
        bits: 2 to 8, or 16.
        signed: whether the grid has negative levels; unsigned after a ReLU.
        step: a fixed step, for operators whose output scale the runtime prescribes
            (softmax: 1/256); None to learn it.
        mirrored: whether a signed grid has its one level more above 0, as suits features that
            are rarely negative on very few bits: -1 to 2 in place of -2 to 1.

    Input: a tensor and, if it lies on a finer grid (a convolution's output), that
    grid's step; inference then rescales integers as the runtime does, with the `rounding`
    of the kernel that makes them (see `repq_tf.arithmetic.rescale`). Layers that are operators
    of their own are told the `runtime` (see `repq_tf.arithmetic.runtimes`).
    Output: `(quantized tensor, step)`, the step `()`.

    Example:
        >>> x, step = Quantize(bits=8)(keras.Input((32, 32, 3)))
        >>> block = repq_tf.layers.ACBlock(64, weight_bits=8, activation="relu")
        >>> y, step = Quantize(bits=8, signed=False)(*block(x, step))
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        step: float | None = None,
        mirrored: bool = False,
        **kwargs: Unpack[LayerOptions],
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        if step is not None:
            number(step, "step", above=0)
        self.bits = bits
        self.signed = boolean(signed, "signed")
        self.fixed_step = step
        self.activation_quantizer = LSQ(
            bits=bits,
            signed=signed,
            narrow=False,
            per_image=True,
            trainable_step=step is None,
            mirrored=mirrored,
            name="activation_quantizer",
        )

    def build(self, input_shape: Shape) -> None:
        """Creates the step."""
        self.activation_quantizer.build(None)
        if self.fixed_step is not None:
            self.activation_quantizer.initial_step.assign(self.fixed_step)
        self.built = True

    @property
    def step(self) -> Tensor:
        """The step, `()`."""
        return self.activation_quantizer.step

    @property
    def zero_point(self) -> int:
        """The integer that stands for 0 in the file."""
        return zero_point(self.bits, self.signed, self.activation_quantizer.mirrored)

    @property
    def operator_zero_point(self) -> int:
        """That of what an operator of the file itself writes; see `arithmetic.grids`."""
        mirrored = self.activation_quantizer.mirrored
        return operator_zero_point(self.bits, self.signed, mirrored)

    def values(self, x: Tensor, *steps: Tensor) -> Tensor:
        """What is rounded, in floating point; `values_shape` tells its shape."""
        return x

    def integers(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        rounding: str = "float",
        limit: float | None = None,
    ) -> Tensor:
        """The levels of the output, as the integer runtime computes them."""
        quantizer = self.activation_quantizer
        if scale is None:
            x = ops.cast(x, quantizer.step.dtype)
            if rounding == "float":
                return quantizer.integers(x)
            levels = x / quantizer.step
            levels = ops.sign(levels) * ops.floor(ops.abs(levels) + 0.5)
            return ops.clip(levels, quantizer.low, quantizer.high)
        whole = ops.round(x / scale)
        levels = rescale(whole, scale, quantizer.step, rounding, self.bits)
        # The 6 of a ReLU6 is off the sums' grid, since the runtime clamps what it has rescaled.
        clamped = ops.round(ops.cast(x, quantizer.step.dtype) / quantizer.step)
        levels = ops.where(whole * scale == x, levels, clamped)
        high = quantizer.high
        if limit is not None:
            high = ops.minimum(ops.round(limit / quantizer.step), high)
        return ops.clip(levels, quantizer.low, high)

    def call(
        self, x: Tensor, scale: Tensor | None = None, training: bool = False, **runtime: Any
    ) -> tuple[Tensor, Tensor]:
        """Returns the quantized tensor and the step.

        Args:
            x: the tensor.
            scale: the step of its grid, if it has one.
            training: whether to fake-quantize.
            **runtime: of what the runtime does: `rounding`, that of the kernel that makes x, by
                default "float" (of a float x, "away": half away from zero), and the `limit` of
                a ReLU6 before it; of an operator, `runtime`, by default "xnnpack".
        """
        if isinstance(x, tuple | list):
            raise ValueError(
                f"{self.name}: give the output of a quantized block as two arguments, "
                "Quantize(...)(*block(x, step))"
            )
        if training:
            return self._fake_quantize(self.values(x, scale)), self.step
        return self.integers(x, scale, **runtime) * self.step, self.step

    def values_shape(self, *shapes: Shape) -> Shape:
        """The shape of `values`, for the shapes of the tensors that it reads."""
        return shapes[0]

    def compute_output_spec(
        self, x: Tensor, scale: Tensor | None = None, training: bool = False, **runtime: Any
    ) -> Any:
        """The shapes and dtypes of `call`'s outputs, without tracing it.

        A subclass with `values` of its own is traced, unless it says what their shape is.
        """
        traced = overrides(type(self), "values", beyond="values_shape")
        if isinstance(x, tuple | list) or traced:
            return super().compute_output_spec(x, scale, training=training, **runtime)
        return self._specs(training, x)

    def _specs(self, training: bool, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        step = self.activation_quantizer.change.dtype
        shape = self.values_shape(*(tensor.shape for tensor in tensors))
        output = keras.KerasTensor(shape, self.compute_dtype if training else step)
        return output, keras.KerasTensor((), step)

    def _fake_quantize(self, x: Tensor) -> Tensor:
        return self.activation_quantizer(ops.cast(x, self.compute_dtype))

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "bits": self.bits,
            "signed": self.signed,
            "step": self.fixed_step,
            "mirrored": self.activation_quantizer.mirrored,
        }


class FixedGrid(Quantize):
    """A function of a stored tensor, on a grid that the runtime prescribes.

    It has 8 bits and the class's `STEP`, and is signed where that is `SIGNED`.

    Args:
        **options: those of `Quantize` but for `bits`, `signed` and `step`.
    """

    STEP: float | None = None
    SIGNED = False

    def __init__(self, **options: Unpack[GridOptions]) -> None:
        options.update({"bits": 8, "signed": self.SIGNED, "step": self.STEP})
        super().__init__(**options)
