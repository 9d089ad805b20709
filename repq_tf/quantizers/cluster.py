"""Codebooks on the grid of int8: clusters of a kernel's weights, learned with them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Shape, Tensor, add_parameter, dtype_name, ops, register
from repq_tf.quantizers.lsq_layer import LSQ

# The levels of int8 that a negative gain turns round without leaving the container.
_WIDEST = 127
_MOST_BITS = 4
# Lloyd's iteration of a thousand weights ends sooner, as a rule.
_ITERATIONS = 100


def nearest_codes(v: Tensor, codes: Tensor) -> Tensor:
    """The code that is nearest to each value; of two as near, the one that comes first.

    Args:
        v: values, `(..., channels)` or of any shape.
        codes: `(number, channels)` or `(number,)`, the latter of all values.
    """
    found = ops.broadcast_to(codes[0], ops.shape(v))
    least = ops.abs(v - found)
    for k in range(1, codes.shape[0]):
        distance = ops.abs(v - codes[k])
        nearer = distance < least
        found, least = ops.where(nearer, codes[k], found), ops.where(nearer, distance, least)
    return found


def cluster(x: Tensor, centres: Tensor, step: Tensor) -> Tensor:
    """Fake-quantizes `x` to whole numbers of steps that are learned: `s n`, n the nearest code.

    The codes are `n_k = round(clip(c_k / s, -127, 127))` and 0. The gradient of x is that of
    the result, as if nothing were rounded, and the gradient of a centre the mean of its
    members': under gradient descent a centre moves as the mean of its members does.

    Args:
        x: a float32 or float64 tensor, `(..., channels)`.
        centres: `(number, channels)`, or `(number,)` for all of x.
        step: `(channels,)` or `()`; it receives no gradient.

    Returns:
        A tensor of x's shape and dtype.
    """

    @ops.custom_gradient
    def quantize(
        x: Tensor, centres: Tensor, step: Tensor
    ) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
        codes = grid_codes(centres, step)
        found = nearest_codes(x / step, codes)

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, ...]:
            upstream = args[0] if upstream is None else upstream
            axes = tuple(range(found.ndim - len(step.shape)))
            means = []
            for k in range(1, codes.shape[0]):  # the first is 0, which stays
                members = ops.cast(found == codes[k], upstream.dtype)
                count = ops.maximum(ops.sum(members, axis=axes), 1.0)
                means.append(ops.sum(upstream * members, axis=axes) / count)
            return upstream, ops.stack(means), ops.zeros_like(step)

        return found * step, gradient

    return quantize(x, centres, step)


def grid_codes(centres: Tensor, step: Tensor) -> Tensor:
    """The codes: 0, and the whole numbers of steps that are nearest to the centres."""
    codes = ops.round(ops.clip(centres / step, -_WIDEST, _WIDEST))
    return ops.concatenate([ops.zeros_like(codes[:1]), codes])


def least_squares_centres(values: Array, number: int) -> Array:
    """The centres of clusters with a small squared error, beside a centre at 0 that stays.

    k-means in one dimension (Lloyd's iteration), which never raises the error, from quantiles
    of which the one nearest to 0 is 0: the same for the same values.

    Args:
        values: numbers.
        number: of the clusters, that of 0 among them.

    Returns:
        `(number - 1,)` in rising order.
    """
    values = np.sort(np.asarray(values, np.float64))
    total = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.quantile(values, (np.arange(number) + 0.5) / number)
    zero = int(np.abs(centres).argmin())
    centres[zero] = 0.0
    for _ in range(_ITERATIONS):
        cuts = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2, side="right")
        ends = np.concatenate([[0], cuts, [len(values)]])
        counts, sums = np.diff(ends), np.diff(total[ends])
        means = np.where(counts > 0, sums / np.maximum(counts, 1), centres)
        means[zero] = 0.0
        if (means == centres).all():
            break
        centres = means
    return np.delete(centres, zero)


@register
class ClusterLSQ(LSQ):
    """A quantizer whose levels are a codebook: `2^bits` whole numbers of int8, learned.

    The file holds int8 whatever the bits, so the few values that weights may have need not be
    equally far apart: each channel (or the whole kernel) has `2^bits` codes within -127 and
    127, one of them 0, on a grid whose step a range rule of 8 bits sets. They start as the
    centres of clusters of its weights (k-means). Every step of training gives each weight its
    nearest code anew, passes gradients straight through to the weights, and moves the codes
    with the mean of their members: `cluster`. The file's operators are those of any kernel, and
    what it computes is exact; compressed, a weight takes at most `bits` bits.

    This is a reconstruction of ClusterQAT (arXiv 2402.07200), whose equations are not public:
    known are clusters instead of equal intervals, re-adjusted while training.

    Args:
        bits: 2 to 4.
        channels: as of `LSQ`.
        **options: the others of `LSQ`; the step is not trained.

    Raises:
        ValueError: the bits are more than 4, or levels unsigned or odd.

    Example:
        >>> quantizer = ClusterLSQ(bits=2, channels=64)
        >>> quantizer.build(None)
        >>> quantizer.initialize(kernel)  # (3, 3, 64, 64)
        >>> on_grid = quantizer(kernel)
    """

    def __init__(self, bits: int = 4, channels: int | None = None, **options: Any) -> None:
        options["trainable_step"] = False
        super().__init__(bits=bits, channels=channels, **options)
        if bits > _MOST_BITS or self.odd or not self.signed:
            raise ValueError(
                f"a codebook must be of at most {_MOST_BITS} bits, signed and not odd."
                f" Received: bits={bits}, signed={self.signed}, odd={self.odd}"
            )
        self.low, self.high = -_WIDEST, _WIDEST  # where codes may be

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the centres of the codes beside the step."""
        super().build(input_shape)
        free = 2**self.bits - 1
        shape = (free,) if self.channels is None else (free, self.channels)
        self.centres = add_parameter(self, "codes", shape, "zeros")

    @property
    def is_uniform(self) -> bool:
        """No: codes are where they were learned to be."""
        return False

    @property
    def codes(self) -> Tensor:
        """The codes, whole numbers `(2^bits, channels)` or `(2^bits,)`, the first of them 0."""
        return grid_codes(ops.convert_to_tensor(self.centres), self.step)

    def initialize(self, values: Tensor, method: str = "min_error") -> None:
        """Sets the step by a range rule of 8 bits, and the codes by k-means.

        Args:
            values: the kernel.
            method: as of `LSQ`.
        """
        super().initialize(values, method)
        values = np.asarray(ops.convert_to_numpy(values))
        rows = values.reshape(-1, self.channels or values.size).T
        rows = rows if self.channels is not None else rows.reshape(1, -1)
        found = np.stack([least_squares_centres(row, 2**self.bits) for row in rows], axis=-1)
        self.centres.assign(found.reshape(self.centres.shape))

    def kernel_integers(self, x: Tensor) -> Tensor:
        """The codes of a kernel's weights."""
        return nearest_codes(
            x / ops.cast(self.step, x.dtype), ops.cast(self.codes, dtype_name(x))
        )

    def integers(self, x: Tensor) -> Tensor:
        """The codes of `x`."""
        return self.kernel_integers(ops.convert_to_tensor(x))

    def call(self, x: Tensor) -> Tensor:
        """Fake-quantizes a kernel."""
        wide = ops.cast(x, self.centres.dtype)
        # A copy, because TensorFlow's custom gradients refuse variables.
        centres = ops.copy(ops.convert_to_tensor(self.centres))
        return ops.cast(cluster(wide, centres, ops.stop_gradient(self.step)), x.dtype)
