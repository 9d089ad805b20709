"""What rounding a kernel looks at: what it reads when quantized, and what it made before."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from repq_tf.branches import Convolution
from repq_tf.calibration.batch_norm import Readings
from repq_tf.calibration.batches import Stored
from repq_tf.calibration.patches import by_group, kernel_matrix, kernel_of, patches_of
from repq_tf.calibration.prepared import MergedBlock
from repq_tf.calibration.thinning import thin, thin_reading
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.layers import ReparamConv

# At how many pixels of each channel, in all images together, outputs are compared, and how
# many numbers that may be.
_PIXELS = 2**14
_NUMBERS = 2**23
# How many numbers of patches are made at once.
_AT_ONCE = 2**23
# What activations that are fused with an operator clip.
BOUNDS = {"linear": (-np.inf, np.inf), "relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A kernel on its grid.

    Attributes:
        levels: whole numbers, `(groups, inputs, outputs / groups)`.
        step: `(groups, 1, outputs / groups)`, all equal where all outputs share one.
    """

    levels: Array
    step: Array

    @property
    def kernel(self) -> Array:
        """What they stand for."""
        return self.levels * self.step


class KernelFit:
    """A quantized convolution of which the levels are to be chosen.

    Matrices are `(groups, inputs, outputs / groups)`, the inputs of a patch in the order of
    channels, rows and columns; rows of features `(groups, pixels, ...)`.

    Args:
        block: the quantized block; its steps are set.
        merged: what it is in the float network.
        readings: the `Readings` of its input, as the quantized network makes it.
        outputs: the float convolution's outputs, without its bias, from `compared`, of
            each call.
        images: the number of images.
        corrected: whether means are corrected afterwards, where there is a bias for it.

    Attributes:
        name: of the block.
        matrix: the kernel in floating point, float64.
        step: float64, `(groups, 1, outputs / groups)`.
        low: the lowest level.
        high: the highest level.
        shared: whether all outputs have one step.
        corrected: whether they will be.
        gain: what outputs are multiplied by, `(groups, 1, outputs / groups)`.
        offset: what is added then, likewise.
        bounds: what the activation behind clips to.
    """

    def __init__(
        self,
        block: ReparamConv,
        merged: MergedBlock,
        readings: Readings,
        outputs: Sequence[Stored],
        images: int,
        corrected: bool,
    ) -> None:
        affine, grid = block.inner.merge(), block.weight_quantizer
        assert grid is not None  # or there is nothing to round
        self._grid = grid
        self._block, self._readings = block, readings
        self._outputs = outputs
        self._images, self._size, self._groups = images, affine.size, affine.groups
        self.name, self._convolution = block.name, block.inner
        assert isinstance(self._convolution, Convolution)  # of merged models, all are
        takes = block.root is not None or self._convolution.bias is not None
        self.corrected = corrected and takes
        self.low, self.high, self.shared = grid.low, grid.high, grid.channels is None
        self.matrix = kernel_matrix(affine).astype(np.float64)
        step = np.asarray(ops.convert_to_numpy(grid.step), np.float64)
        self.step = self._of_outputs(step)
        self.gain, self.offset = map(self._of_outputs, (merged.gain, merged.offset))
        self.bounds = BOUNDS.get(
            keras.activations.serialize(block.activation), (-np.inf, np.inf)
        )

    def _of_outputs(self, values: Array | Tensor) -> Array:
        values = np.asarray(ops.convert_to_numpy(values), np.float64)
        filled = np.broadcast_to(values, (self._block.filters,))
        return filled.reshape(self._groups, 1, -1).copy()

    @property
    def pixels(self) -> int:
        """How many pixels of each output are compared, in all images."""
        return sum(stored.size for stored in self._outputs) // self._block.filters

    def pairs(self) -> Iterator[tuple[Array, Array, Array]]:
        """Yields patches of the quantized input and the float outputs at the same pixels.

        And the number of the image that each pixel is from.
        """
        seen = 0
        made = (stored[k] for stored in self._outputs for k in range(len(stored)))
        for reading, outputs in zip(self._readings, made, strict=False):
            values = _pixels(outputs.shape[-1])
            thinned = thin_reading(
                reading, self._size, self._images, values, self._block.upsampling
            )
            patches = patches_of(thinned, self._size)
            pixels = patches.shape[:3]
            row, rows = int(np.prod(patches.shape[3:])), int(np.prod(pixels))
            height = max(1, _AT_ONCE // row)
            for first in range(0, rows, height):
                places = np.arange(first, min(first + height, rows))
                images, *_ = where = np.unravel_index(places, pixels)
                part, real = patches[where].reshape(len(places), row), outputs[where]
                yield by_group(part, self._groups), by_group(real, self._groups), images + seen
            seen += len(outputs)

    def nearest(self) -> Rounded:
        """The nearest levels, with the steps as they are."""
        levels = np.clip(np.rint(self.matrix / self.step), self.low, self.high)
        return Rounded(levels, self.step)

    def better(self, one: Rounded, other: Rounded, error: Callable[[Array], Array]) -> Rounded:
        """Of each output the better of two, the other where both are alike.

        Args:
            one: levels and steps.
            other: likewise.
            error: `error(kernel)` returns the error of each output, of their steps' shape.
        """
        before, after = error(other.kernel), error(one.kernel)
        wins = after.sum() < before.sum() if self.shared else after < before
        levels, step = (
            np.where(wins, a, b)
            for a, b in ((one.levels, other.levels), (one.step, other.step))
        )
        return Rounded(levels, step)

    def write(self, rounded: Rounded) -> None:
        """Sets the block's steps, and its kernel to the levels times these.

        So that the quotient of the two rounds to the levels again, in inference and when the
        file is written.
        """
        step = rounded.step.astype(np.float32).ravel()
        self._grid.set_step(step[0] if self.shared else step)
        step = self._of_outputs(self._grid.step)
        self._convolution.kernel.assign(kernel_of(rounded.levels * step, self._size))


# What chooses the levels of a kernel.
Rounding: TypeAlias = Callable[[KernelFit], Rounded]


def compared(y: Tensor, images: int, phases: int = 1) -> Tensor:
    """Those of the pixels of a block's output that rounding compares.

    Args:
        y: the outputs of some images, `(batch, height, width, channels)`.
        images: the number of images in all batches.
        phases: as in `thin`.
    """
    return thin(y, images, _pixels(y.shape[-1]), phases)


def _pixels(channels: int) -> int:
    return max(1, min(_PIXELS, _NUMBERS // channels))
