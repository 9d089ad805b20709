"""How a merge reads an expression: which values, and which moments of batch norms."""

import dataclasses
from typing import Self

import numpy as np

from repq_tf.arithmetic import wide_dtype
from repq_tf.branches.moments import Moments, image_moments
from repq_tf.keras_api import Array, Layer, Pair, Tensor, Variable, ops
from repq_tf.kernels import AffineKernel
from repq_tf.windows import Window, crop_window, with_every


class Reading:
    """How `Branch.merge` reads an expression: as tensors, with moving statistics.

    This is the reading of inference. `WideReading` and `NumpyReading` are the same in
    float64, for integer inference and for deployment; `FeatureReading`
    takes the moments from the features, for training.
    """

    xp = ops

    def value(self, variable: Variable) -> Tensor:
        """A variable's value, which stays when the variable changes."""
        return ops.copy(ops.convert_to_tensor(variable))

    def constant(self, array: Array) -> Tensor:
        """A NumPy constant."""
        return ops.convert_to_tensor(array)

    def moments(self, batch_norm: Layer, affine: AffineKernel) -> Moments:
        """Mean and variance, `(channels,)`, of the features convolved with `affine`.

        Args:
            batch_norm: the `BatchNorm` that asks.
            affine: the `AffineKernel` that stands before it.
        """
        return self.moving(batch_norm.statistics)

    def moving(self, statistics: Layer) -> Moments:
        """The moving mean and variance of a `BatchNormStatistics`."""
        return self.value(statistics.moving_mean), self.value(statistics.moving_variance)

    def inside(self, outer: Pair, inner: Pair) -> Self:
        """The reading of a branch of size `inner` centred in one of size `outer`."""
        return self

    def after(self, prefix: AffineKernel | None, last: bool) -> Self:
        """The reading of a chain's link that follows `prefix` (None: the first link).

        Only the last link has the strides.
        """
        return self


class WideReading(Reading):
    """The reading of integer inference: in float64 where the backend has it.

    Graph compilers reorder float arithmetic, which moves the last bit of a merged weight
    and, where it lies between two levels, its integer. In float64 that does not happen.
    """

    @property
    def dtype(self) -> str:
        """Of its numbers."""
        return wide_dtype()

    def value(self, variable: Variable) -> Tensor:
        """A variable's value."""
        return ops.cast(variable, self.dtype)

    def constant(self, array: Array) -> Tensor:
        """A NumPy constant."""
        return ops.cast(array, self.dtype)


class NumpyReading(Reading):
    """The reading of deployment: moving statistics, everything in float64 NumPy."""

    xp = np

    def value(self, variable: Variable) -> Array:
        """A variable's value as a float64 array."""
        return np.asarray(ops.convert_to_numpy(variable), np.float64)

    def constant(self, array: Array) -> Array:
        """A constant as a float64 array."""
        return np.asarray(array, np.float64)


class FeatureReading(Reading):
    """The reading of training: moments come from the features.

    Derived readings (`inside`, `after`) share the features and what was already
    computed of them.

    Args:
        x: the block's input `(batch, height, width, channels)`, unpadded.
        window: the zeros the block pads it with.
        strides: the block's strides.
    """

    def __init__(
        self,
        x: Tensor,
        window: Window,
        strides: Pair,
        prefix: AffineKernel | None = None,
        shared: "_Shared | None" = None,
    ) -> None:
        self.x = x
        self.window = window
        self.strides = strides
        self._prefix = prefix
        self._shared = _Shared(x) if shared is None else shared

    def inside(self, outer: Pair, inner: Pair) -> Self:
        """The reading of a smaller kernel: a crop of the window."""
        window = crop_window(self.window, outer, inner)
        return self._derive(window, self.strides, self._prefix)

    def after(self, prefix: AffineKernel | None, last: bool) -> Self:
        """The reading of a chain's link: what precedes it is composed with it."""
        if self._prefix is not None and prefix is not None:
            prefix = self._prefix.then(prefix)
        elif prefix is None:
            prefix = self._prefix
        return self._derive(self.window, self.strides if last else (1, 1), prefix)

    def _derive(self, window: Window, strides: Pair, prefix: AffineKernel | None) -> Self:
        return type(self)(self.x, window, strides, prefix, self._shared)

    def moments(self, batch_norm: Layer, affine: AffineKernel) -> Moments:
        """The moments, in the mode of the statistics; updates the moving ones."""
        return batch_norm.statistics.of_kernel(self, self.composed(affine))

    def composed(self, affine: AffineKernel) -> AffineKernel:
        """`affine` after everything that precedes it, as a map of the block's input."""
        return affine if self._prefix is None else self._prefix.then(affine)

    def input_moments(self, synchronized: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Batch-mean image `(h, w, c)`, mean `(c,)` and variance `(c,)` of the input."""
        if synchronized not in self._shared.moments:
            self._shared.moments[synchronized] = image_moments(self.x, synchronized)
        return self._shared.moments[synchronized]

    def sampled(self, distance: int) -> Tensor:
        """Every `distance`-th image of the input, of which replicas take the same."""
        shared = self._shared
        if distance not in shared.samples:
            shared.rest, shared.samples[distance] = with_every(shared.rest, distance)
        return shared.samples[distance]

    @property
    def rest(self) -> Tensor:
        """The features, for what reads them after the moments: `with_every`'s."""
        return self._shared.rest


@dataclasses.dataclass
class _Shared:
    """What readings of the same features have computed of them.

    Attributes:
        rest: the features as they are after all samples.
        moments: the input's, by whether replicas share them.
        samples: every k-th image, by k.
    """

    rest: Tensor
    moments: dict[bool, tuple[Tensor, Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    samples: dict[int, Tensor] = dataclasses.field(default_factory=dict)
