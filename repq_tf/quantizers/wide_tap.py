"""LSQ with a wide tap: the bounds of int8 for the one weight that an identity makes."""

import numpy as np

from repq_tf.keras_api import Array, Shape, Tensor, Variable, dtype_name, ops, register
from repq_tf.quantizers.lsq import fake_quantize
from repq_tf.quantizers.lsq_layer import LSQ

# The levels of int8 that a negative gain turns round without leaving the container.
_WIDEST = 127


def has_identity_taps(
    in_channels: int, filters: int, kernel_size: Shape, strides: Shape
) -> bool:
    """Whether a convolution of this geometry can hold an identity in its kernel."""
    odd = all(size is not None and size % 2 == 1 for size in kernel_size)
    return odd and in_channels == filters and all(stride == 1 for stride in strides)


def check_identity_taps(
    name: str, in_channels: int, filters: int, kernel_size: Shape, strides: Shape
) -> None:
    """Raises ValueError if a layer's convolution cannot hold an identity."""
    if not has_identity_taps(in_channels, filters, kernel_size, strides):
        raise ValueError(
            f"{name}: wide_tap is for odd kernels with strides of 1 and as many filters as "
            f"channels. Received: a kernel of {kernel_size}, strides of {strides}, {filters} "
            f"filters for {in_channels} channels"
        )


def identity_taps(shape: Shape) -> Array:
    """Which weights an identity makes: the centre of output o and input `o mod inputs`.

    Args:
        shape: of a kernel, `(kh, kw, in_channels / groups, filters)`, with as many channels
            as filters.

    Returns:
        A bool array of that shape, true for one weight of each filter.
    """
    height, width, inputs, filters = (int(size) for size in shape)
    taps = np.zeros(shape, bool)
    outputs = np.arange(filters)
    taps[height // 2, width // 2, outputs % inputs, outputs] = True
    return taps


@register
class WideTapLSQ(LSQ):
    """An `LSQ` for kernels whose identity branch puts one large weight into each filter.

    Merged RepVGG kernels have one tap of ten to eighty times the others' root mean square, and
    one b-bit grid cannot serve both: it clips the one or rounds the others to 0. The file
    holds int8 whatever the bits, so the tap may have all of it:

        n = round(clip(w / s, -127, 127)) at the centre of output o, input `o mod inputs`,
        n = round(clip(w / s, low, high)) elsewhere,

    one step for both, in the same single convolution. It costs `(8 - b) / (kh kw inputs)` bits
    a weight. The step's range rule, its gradient's limit and clip rates look at the other
    weights alone: the tap's energy would freeze the step. The tap's bound does hold it, since
    `s >= |tap| / 127`; so it wins at 4 bits and below, and changes nothing at 8.

    Its arguments are those of `LSQ`.

    Example:
        >>> quantizer = WideTapLSQ(bits=4, channels=64)
        >>> quantizer.build(None)
        >>> quantizer.initialize(kernel)  # (3, 3, 64, 64)
        >>> on_grid = quantizer(kernel)
    """

    def odd_levels(self, shape: Shape) -> bool | Array:
        """Which weights have odd levels: the taps have all those of int8."""
        return ~identity_taps(shape) if self.odd else False

    @property
    def is_uniform(self) -> bool:
        """No: the taps have other bounds."""
        return False

    def bounds(self, shape: Shape) -> tuple[Array, Array]:
        """The lowest and the highest level of each weight, float32 arrays."""
        taps = identity_taps(shape)
        low = np.where(taps, -_WIDEST, self.low).astype(np.float32)
        return low, np.where(taps, _WIDEST, self.high).astype(np.float32)

    def initialize(self, values: Tensor, method: str = "min_error") -> None:
        """Sets the step by a rule for the other weights, as far as the taps fit then.

        Args:
            values: the kernel.
            method: as of `LSQ`.
        """
        values = np.asarray(ops.convert_to_numpy(values))
        tap, others = _parted(values)
        super().initialize(others if self.channels is not None else others.ravel(), method)
        largest = np.abs(tap) if self.channels is not None else np.abs(tap).max()
        step = np.asarray(ops.convert_to_numpy(self.step))
        self.set_step(np.maximum(step, (largest / _WIDEST).astype(step.dtype)))

    def rounded(self, x: Tensor, initial_step: Variable, change: Variable) -> Tensor:
        """The fake-quantized kernel, with a step that is kept elsewhere; as of `LSQ`."""
        dtype = dtype_name(change)
        low, high = (bound.astype(dtype) for bound in self.bounds(x.shape))
        return fake_quantize(
            x,
            initial_step,
            change,
            low,
            high,
            self.gradient_scale,
            bounded=self.bounded,
            top=self._gradient_top,
            counted=np.asarray(~identity_taps(x.shape), dtype),
            odd=self.odd_levels(x.shape),
        )

    def clip_rate(self, x: Tensor) -> Tensor:
        """The share of the other weights outside the grid's range, as of `LSQ`."""
        v, half = ops.cast(x, self.change.dtype) / self.step, self._half
        outside = ops.logical_or(v < self.low - half, v > self.high + half)
        counted = ~identity_taps(x.shape)
        rate = ops.mean(ops.cast(ops.logical_and(outside, counted), "float32"))
        return rate * (counted.size / counted.sum())


def _parted(kernel: Array) -> tuple[Array, Array]:
    """The taps `(filters,)`, and the other weights `(n, filters)`."""
    filters = kernel.shape[-1]
    rows, taps = (
        np.moveaxis(values, -1, 0).reshape(filters, -1)
        for values in (kernel, identity_taps(kernel.shape))
    )
    return rows[taps], rows[~taps].reshape(filters, -1).T
