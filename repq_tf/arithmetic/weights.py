"""The weights of a deployed integer convolution, in the arithmetic of inference."""

from repq_tf.keras_api import Layer, Tensor, ops
from repq_tf.kernels import AffineKernel

# A channel whose gain has vanished still has a bias; its scale is kept large
# enough for the bias to fit 32 bits and for the runtime's multiplier to exist.
_LARGEST_BIAS = 2.0**30
_SMALLEST_SCALE = 2.0**-20


def integer_weights(
    affine: AffineKernel,
    quantizer: Layer,
    input_step: Tensor,
    gain: Tensor | None = None,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Integer weights, their scale and the integer bias of `gain * conv + shift`.

    With `n = levels of the kernel`, `s` the quantizer's step:

        y = sum(n_x * n) * s * input_step * gain + (bias * gain + shift)
          = (sum(n_x * n * sign(gain)) + bias_integers) * (scale * input_step),
        scale = s * |gain|,  bias_integers = round((bias * gain + shift) / (scale * input_step))

    Args:
        affine: the merged `AffineKernel`, not quantized; in the `wide_dtype`.
        quantizer: the `LSQ` of its kernel.
        input_step: the step of the input's grid, `()`.
        gain: per output channel, of the batch norm that follows; or None.
        shift: likewise.

    Returns:
        `(integers, scale, bias, groups)`: whole numbers in the kernel's shape, the
        positive `(channels,)` and whole numbers `(channels,)`, float32 tensors; and the
        kernel's number of groups.
    """
    dtype = affine.kernel.dtype
    step, input_step = ops.cast(quantizer.step, dtype), ops.cast(input_step, dtype)
    integers = quantizer.kernel_integers(affine.kernel)
    scale = ops.broadcast_to(step, affine.bias.shape)
    bias = affine.bias
    if gain is not None:
        integers = ops.where(gain < 0, -integers, integers)
        scale = scale * ops.abs(gain)
        bias = bias * gain + shift
    largest = ops.max(scale)
    largest = ops.where(largest > 0, largest, ops.max(step))  # all gains may be 0
    floor = ops.maximum(ops.abs(bias) / (input_step * _LARGEST_BIAS), largest * _SMALLEST_SCALE)
    small = scale < floor
    integers = ops.where(small, ops.round(integers * (scale / floor)), integers)
    # The file's scale is a float32, so the bias is counted in units of that.
    scale = ops.cast(ops.where(small, floor, scale), "float32")
    bias = ops.round(bias / (ops.cast(scale, dtype) * input_step))
    return ops.cast(integers, "float32"), scale, ops.cast(bias, "float32"), affine.groups
