"""Quantizers of stored activation tensors, as layers of the model.

A quantized tensor travels with its step: these layers return `(tensor, step)`, and
so do quantized blocks. In training they fake-quantize; in inference they compute what the
integer runtime (LiteRT with XNNPACK) computes, in its order and its rounding.
"""

from repq_tf.arguments import boolean, number
from repq_tf.arithmetic import WIDE, sums
from repq_tf.arithmetic.rescale import rescale
from repq_tf.keras_api import Layer, keras, ops, overrides, register
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

    Input: a tensor and, if it lies on a finer grid (a convolution's output), that
    grid's step; inference then rescales integers as the runtime does, with the `rounding`
    of the kernel that makes them (see `repq_tf.arithmetic.rescale`).
    Output: `(quantized tensor, step)`, the step `()`.

    Example:
        >>> x, step = Quantize(bits=8)(keras.Input((32, 32, 3)))
        >>> block = repq_tf.layers.ACBlock(64, weight_bits=8, activation="relu")
        >>> y, step = Quantize(bits=8, signed=False)(*block(x, step))
    """

    def __init__(self, bits=8, signed=True, step=None, **kwargs):
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
            name="activation_quantizer",
        )

    def build(self, input_shape):
        """Creates the step."""
        self.activation_quantizer.build(None)
        if self.fixed_step is not None:
            self.activation_quantizer.initial_step.assign(self.fixed_step)
        self.built = True

    @property
    def step(self):
        """The step, `()`."""
        return self.activation_quantizer.step

    def values(self, x, *steps):
        """What is rounded, in floating point."""
        return x

    def integers(self, x, scale=None, rounding="float"):
        """The levels of the output, as the integer runtime computes them."""
        quantizer = self.activation_quantizer
        if scale is None:
            return quantizer.integers(ops.cast(x, quantizer.step.dtype))
        whole = ops.round(x / scale)
        levels = rescale(whole, scale, quantizer.step, rounding)
        # The 6 of a ReLU6 is off the sums' grid, since the runtime clamps what it has rescaled.
        clamped = ops.round(ops.cast(x, quantizer.step.dtype) / quantizer.step)
        levels = ops.where(whole * scale == x, levels, clamped)
        return ops.clip(levels, quantizer.low, quantizer.high)

    def call(self, x, scale=None, training=False, **rounding):
        """Returns the quantized tensor and the step.

        Args:
            x: the tensor.
            scale: the step of its grid, if it has one.
            training: whether to fake-quantize.
            **rounding: `rounding`, of the kernel that makes x; default "float".
        """
        if isinstance(x, tuple | list):
            raise ValueError(
                f"{self.name}: give the output of a quantized block as two arguments, "
                "Quantize(...)(*block(x, step))"
            )
        if training:
            return self._fake_quantize(self.values(x, scale)), self.step
        return self.integers(x, scale, **rounding) * self.step, self.step

    def compute_output_spec(self, x, *args, **kwargs):
        """The shapes and dtypes of `call`'s outputs, without tracing it where that is easy."""
        if isinstance(x, tuple | list) or overrides(
            type(self), "values", "compute_output_spec"
        ):
            return super().compute_output_spec(x, *args, **kwargs)
        training = kwargs.get("training", args[1] if len(args) > 1 else False)
        step = self.activation_quantizer.change.dtype
        output = keras.KerasTensor(x.shape, self.compute_dtype if training else step)
        return output, keras.KerasTensor((), step)

    def _fake_quantize(self, x):
        return self.activation_quantizer(ops.cast(x, self.compute_dtype))

    def get_config(self):
        """The arguments of the constructor."""
        config = super().get_config()
        config.pop("autocast", None)
        return {
            **config,
            "bits": self.bits,
            "signed": self.signed,
            "step": self.fixed_step,
        }


class QuantizedPair(Quantize):
    """An operator on two stored tensors, with an activation fused into it.

    Args:
        activation: "linear", "relu" or "relu6".
        **options: those of `Quantize`.

    Input: `a`, `b` and their steps. Output: `(result, step)`.
    """

    def __init__(self, bits=8, signed=True, activation="linear", **options):
        super().__init__(bits, signed, **options)
        self.activation = keras.activations.get(activation)

    def combine(self, a, b):
        """The operator in floating point."""
        raise NotImplementedError(f"{type(self).__name__} must implement combine")

    def combine_levels(self, a, b, step_a, step_b):
        """The levels of the result, not clipped, of the inputs' levels (int32)."""
        raise NotImplementedError(f"{type(self).__name__} must implement combine_levels")

    def values(self, a, b, *steps):
        """The result in floating point."""
        if len(a.shape) != len(b.shape):
            raise ValueError(
                f"layer {self.name!r}: both inputs must have the same number of dimensions. "
                f"Received: shapes {tuple(a.shape)} and {tuple(b.shape)}"
            )
        return self.activation(self.combine(a, ops.cast(b, a.dtype)))

    def integers(self, a, b, step_a, step_b):
        """The levels of the result."""
        quantizer = self.activation_quantizer
        left, right = sums.whole(a, step_a), sums.whole(b, step_b)
        levels = self.combine_levels(left, right, step_a, step_b)
        top = self.activation(ops.full((), 1e30, dtype=levels.dtype)) / quantizer.step
        levels = ops.minimum(levels, ops.round(ops.minimum(top, 1e6)))
        return ops.clip(levels, quantizer.low, quantizer.high)

    def call(self, a, b, step_a, step_b, training=False):
        """Returns the quantized result and the step."""
        if training:
            return self._fake_quantize(self.values(a, b)), self.step
        return self.integers(a, b, step_a, step_b) * self.step, self.step

    def get_config(self):
        """The arguments of the constructor."""
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "activation": activation}


@register
class QuantizedAdd(QuantizedPair):
    """`activation(a + b)` on a learned grid: a residual sum.

    The runtime adds in fixed point; see `repq_tf.arithmetic.sums`: `add`, and `add_wide` with
    16 bits.

    Args:
        **options: those of `QuantizedPair`.

    Input: `a`, `b` and their steps. Output: `(sum, step)`.
    """

    def combine(self, a, b):
        """The sum."""
        return a + b

    def combine_levels(self, a, b, step_a, step_b):
        """The levels of the sum."""
        add = sums.add if self.bits <= 8 else sums.add_wide
        return add(a, b, step_a, step_b, self.step)


@register
class QuantizedMultiply(QuantizedPair):
    """`activation(a * b)` on a learned grid; shapes are broadcast.

    The runtime rescales the products of integers in float32:
    `n = round(n_a n_b (step_a step_b / step))`.

    Args:
        **options: those of `QuantizedPair`.

    Input: `a`, `b` and their steps. Output: `(product, step)`.
    """

    def combine(self, a, b):
        """The product."""
        return a * b

    def combine_levels(self, a, b, step_a, step_b):
        """The levels of the product."""
        return ops.round(ops.cast(a * b, step_a.dtype) * (step_a * step_b / self.step))


@register
class QuantizedMean(Quantize):
    """The mean over height and width on a learned grid: `(batch, channels)`.

    The runtime sums integers with their zero points and rescales once; see
    `repq_tf.arithmetic.sums`: `mean`, and `mean_wide` with 16 bits.

    Args:
        keepdims: whether the output is `(batch, 1, 1, channels)`.
        input_zero_point: the integer of the input's container that stands for 0.
        **options: those of `Quantize`.

    Input: the features and their step. Output: `(mean, step)`.
    """

    def __init__(self, bits=8, signed=True, keepdims=False, input_zero_point=0, **options):
        super().__init__(bits, signed, **options)
        self.keepdims = boolean(keepdims, "keepdims")
        self.input_zero_point = input_zero_point

    def values(self, x, *steps):
        """The mean in floating point."""
        return ops.mean(x, axis=(1, 2), keepdims=self.keepdims)

    def integers(self, x, step_in):
        """The levels of the mean."""
        quantizer = self.activation_quantizer
        count = ops.convert_to_tensor(ops.shape(x)[1] * ops.shape(x)[2])
        levels = ops.round(ops.cast(x, step_in.dtype) / step_in)
        if self.bits > 8:
            levels = ops.cast(levels, WIDE)
            total = ops.sum(levels, axis=(1, 2), keepdims=self.keepdims)
            levels = sums.mean_wide(total, count, step_in, quantizer.step)
            return ops.clip(levels, quantizer.low, quantizer.high)
        total = ops.sum(levels, axis=(1, 2), keepdims=self.keepdims)
        count = ops.cast(count, step_in.dtype)
        zeros = self.input_zero_point, 127.0 - quantizer.high
        levels = sums.mean(total, count, step_in, quantizer.step, *zeros)
        return ops.clip(levels, quantizer.low, quantizer.high)

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "keepdims": self.keepdims,
            "input_zero_point": self.input_zero_point,
        }
