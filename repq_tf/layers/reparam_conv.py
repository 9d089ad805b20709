"""The base of every re-parameterized convolution: how it computes, and what it merges into."""

from typing import Any, TypeAlias

from repq_tf.arithmetic import integer_weights, wide_dtype
from repq_tf.branches import FeatureReading, Reading, Streams, WideReading
from repq_tf.keras_api import (
    Array,
    Shape,
    Tensor,
    check_same_keras,
    keras,
    ops,
    overrides,
    register,
)
from repq_tf.kernels import AffineKernel
from repq_tf.layers.expression import ExpressionLayer
from repq_tf.windows import Window, convolve, convolved_size

# Integers `(kh, kw, in / groups, out)`, their scales and the biases, `(out,)` each.
ConvWeights: TypeAlias = tuple[Array, Array, Array]


@register
class ReparamConv(ExpressionLayer):
    """A convolution that is trained as an expression over branches.

    A subclass declares the expression in `make_branches`; everything else is done
    here. In floating point the branches run one by one. With `merged=True` or with
    `weight_bits`, `call` computes the merged kernel `M` and bias `b` from the branch
    variables, differentiably, and returns

        activation(root(conv(x, Q(M)) + b))

    where Q is the LSQ quantizer (none without `weight_bits`) and root is the batch
    norm at the root of the expression, if there is one, or the *restored* one: it
    follows the convolution exactly and folds into the per-channel scale of the
    deployed layer. This is RepQ (arXiv 2311.05317, Eq. 1 and Algorithm 1).

    In inference, a quantized block that is given the step of its input computes what
    the integer runtime computes: whole-number weights and inputs, and a bias on the
    `input_step * weight_step` grid. It then returns that grid's steps with its output,
    for the `Quantize` layer behind it.

    Args:
        filters: number of output channels.
        kernel_size: of the merged kernel; a number or `(height, width)`.
        strides: a number or `(height, width)`.
        padding: "same" (Keras's rule), "valid", or explicit zeros: a number,
            `(height, width)` or `((top, bottom), (left, right))`. The input is padded
            once, for the full kernel; smaller branches work on a centred crop.
        groups: number of groups.
        activation: Keras activation, applied last.
        merged: whether to compute with the merged kernel in floating point too.
        bn_statistics: where merged batch norms get their moments in training:
            "restored", "batch", "estimate", "sample" or "running"; see
            `BatchNormStatistics`.
        restore_batch_norm: whether a batch norm stands after the merged convolution of
            a block that has none at its root. Default: where batch norms inside are
            merged with `bn_statistics="restored"`.
        weight_bits: 2 to 8 to quantize the merged kernel; None for floating point.
        per_channel: whether each output channel has a step of its own.
        step_gradient: how fast the steps of the weights learn: "bounded", about as fast as
            the weights, or "lsq", by LSQ's published gradient scale; see
            `repq_tf.quantizers.lsq`.
        weight_levels: which numbers of steps the kernel's weights may be: "uniform", all
            between the bounds of `weight_bits`; "odd", as many odd ones, see
            `repq_tf.quantizers.LSQ`; or "cluster", as many of int8 that are learned, see
            `repq_tf.quantizers.ClusterLSQ`.
        wide_tap: whether the weight that an identity makes, the centre of output o and input
            `o mod inputs`, has the bounds of int8 and not those of `weight_bits`; see
            `repq_tf.quantizers.WideTapLSQ`.
        dampening: in quantized training, the weight of a loss that draws the kernel's weights
            to their levels, so that they oscillate less (arXiv 2203.11086): its squared
            distance from what it is rounded to. 0 for none.
        momentum: of the batch norms' moving statistics.
        epsilon: of the batch norms.
        synchronized: whether replicas share batch moments.
        sample_fraction: the share of the batch for `bn_statistics="sample"`.
        literal_estimate: whether "estimate" takes the paper's Eq. 5 as printed.
        oabn_k: the largest gain of the branches' batch norms, which are `OABN` then.
        kernel_initializer: of the branches' kernels.
        kernel_regularizer: of the branches' kernels.

    Input: `(batch, height, width, channels)`, and the step of the grid that it lies on for a
    quantized block. Output: `(batch, height', width', filters)`; of a quantized block
    that is given a step, `(output, scale)`, scale `(filters,)`.

    Example, a new re-parameterization in ten lines:
        >>> @keras.saving.register_keras_serializable()
        ... class WideBlock(repq_tf.layers.ReparamConv):
        ...     def make_branches(self, in_channels):
        ...         wide = self.batch_norm(self.convolution((1, 5), name="wide"))
        ...         tall = self.batch_norm(self.convolution((5, 1), name="tall"))
        ...         return repq_tf.branches.Sum([wide, tall])
        >>> y = WideBlock(16, kernel_size=5, activation="relu")(x)
    """

    # How many pixels each side of a pixel becomes.
    upsampling = 1

    # Running.

    def call(
        self,
        inputs: Tensor,
        input_step: Tensor | None = None,
        training: bool = False,
        wide: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the block.

        Args:
            inputs: `(batch, height, width, channels)`.
            input_step: the step of the grid that the inputs lie on, `()`; given, a
                quantized block's inference is the integer runtime's.
            training: whether batch norms use the batch's moments.
            wide: whether integer inference adds and returns float64 (where the backend has
                it), for sums that float32 does not hold and scales to their last bit.
        """
        check_same_keras(inputs, f"the input of {self.name}")
        x = ops.cast(inputs, self.compute_dtype)
        window = self.window(x.shape[1:3])
        integer = self.weight_quantizer is not None and input_step is not None
        if integer and not training:
            y, scale = self._integer_convolution(inputs, input_step, window, wide)
            return self.activation(y), scale
        if self.uses_merged_kernel:
            y = self._merged_convolution(x, window, training)
        else:
            x = self.spread(x)
            y = self.expression(x, window=window, strides=self.strides, training=training)
        y = self.activation(ops.cast(y, self.compute_dtype))
        # The scale matters to inference alone.
        return (y, ops.broadcast_to(input_step, (self.filters,))) if integer else y

    def compute_output_spec(
        self,
        inputs: Tensor,
        input_step: Tensor | None = None,
        training: bool = False,
        wide: bool = False,
    ) -> Any:
        """The shape and dtype of `call`'s outputs, without tracing it.

        A subclass with a `call` of its own is traced, unless it says that this holds for it.
        """
        if overrides(type(self), "call", beyond="compute_output_spec"):
            return super().compute_output_spec(inputs, input_step, training=training, wide=wide)
        check_same_keras(inputs, f"the input of {self.name}")
        shape = self._output_shape(inputs.shape)
        if self.weight_quantizer is None or input_step is None:
            return keras.KerasTensor(shape, self.compute_dtype)
        if training:
            step = keras.KerasTensor((self.filters,), input_step.dtype)
            return keras.KerasTensor(shape, self.compute_dtype), step
        dtype = wide_dtype() if wide else "float32"
        return keras.KerasTensor(shape, dtype), keras.KerasTensor((self.filters,), dtype)

    def _output_shape(self, input_shape: Shape) -> Shape:
        pixels = input_shape[1:3]
        size = convolved_size(pixels, self.window(pixels), self.kernel_size, self.strides)
        return input_shape[0], *size, self.filters

    def _merged_convolution(self, x: Tensor, window: Window, training: bool) -> Tensor:
        reading = FeatureReading(x, window, self.strides) if training else Reading()
        affine = self.inner.merge(reading)
        x = reading.rest if isinstance(reading, FeatureReading) else x
        kernel = affine.kernel
        quantizer = self.weight_quantizer or self.kernel_hook
        if quantizer is not None:
            if training and self.dampening and self.weight_quantizer is not None:
                self.add_loss(self.dampening * self.weight_quantizer.distance(kernel))
            kernel = quantizer(kernel)
        y = self._convolve(x, kernel, affine.groups, window)
        bias = affine.bias if affine.has_bias else None
        if self.root is not None:
            training = training and self.bn_statistics != "running"
            return self.root.normalize(y, training, bias)
        return y if bias is None else y + ops.cast(bias, y.dtype)

    def _integer_convolution(
        self, x: Tensor, input_step: Tensor, window: Window, wide: bool
    ) -> tuple[Tensor, Tensor]:
        integers, scale, bias, groups = self.integer_weights(input_step)
        x, input_step = ops.cast(x, scale.dtype), ops.cast(input_step, scale.dtype)
        x = ops.round(x / input_step)
        if wide:
            x, scale, bias, input_step = (
                ops.cast(value, wide_dtype()) for value in (x, scale, bias, input_step)
            )
        y = self._convolve(x, integers, groups, window)
        scale = scale * input_step
        return (y + bias) * scale, scale

    def spread(self, x: Tensor) -> Tensor:
        """What the kernel is convolved with, of features; of most blocks, these themselves."""
        return x

    def _convolve(self, x: Tensor, kernel: Tensor, groups: int, window: Window) -> Tensor:
        return convolve(x, kernel, groups, self.strides, window)

    def stored_weights(self, integers: Array, scale: Array, bias: Array) -> ConvWeights:
        """The integers, scales and biases that a file's operator holds, of the block's own."""
        return integers, scale, bias

    # Reading.

    def merge(self, reading: Reading | None = None) -> AffineKernel:
        """Returns the `AffineKernel` that the whole block is in inference.

        Args:
            reading: a `Reading`; `NumpyReading()` merges in float64.
        """
        reading = reading or Reading()
        affine = self.inner.merge(reading)
        root = self.root
        if root is None or (root is self.restored and not self.uses_merged_kernel):
            return affine
        return affine.scale(*root.gain_and_shift(reading=reading))

    def join_streams(self, inputs: Array, streams: Streams) -> Array:
        """Says which channels of the float block can only be scaled alike; see `Branch`."""
        outputs = self.expression.join_streams(inputs, streams)
        if self.root is self.restored and self.restored is not None and self.uses_merged_kernel:
            outputs = self.restored.join_streams(outputs, streams)
        return outputs

    def integer_weights(self, input_step: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """The weights of the deployed integer layer; see `repq_tf.arithmetic.weights`."""
        reading = WideReading()
        affine = self.inner.merge(reading)
        gain, shift = None, None
        if self.root is not None:
            gain, shift = self.root.gain_and_shift(reading=reading)
        return integer_weights(affine, self.weight_quantizer, input_step, gain, shift)
