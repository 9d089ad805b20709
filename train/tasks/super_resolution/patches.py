"""Batches of crops of image pairs, for training and for a look at the test images."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from repq_tf.train.data.epoch import EpochDataset
from repq_tf.train.tasks.super_resolution.color import luma, to_network
from repq_tf.train.tasks.super_resolution.pair import Pair


def channels_of(color: str) -> int:
    """Returns the number of channels of `--color`: 1 for luma, 3."""
    return 1 if color == "y" else 3


def as_color(pixels: np.ndarray, color: str) -> np.ndarray:
    """Returns uint8 RGB pixels as the channels that are trained, in 0 to 255."""
    return luma(pixels).astype("float32") if color == "y" else pixels


def _as_batch(crops: Iterable[Sequence[np.ndarray]], color: str) -> tuple[np.ndarray, ...]:
    """Makes of uint8 crops `(low, high)` what a network gets and what it should return."""
    return tuple(
        to_network(as_color(np.stack(images), color)) for images in zip(*crops, strict=True)
    )


class PatchDataset(EpochDataset):
    """One epoch of random crops, mirrored and transposed at random; see `EpochDataset`.

    Args:
        pairs: List of `pairs.Pair`, none smaller than a crop.
        color: `"y"` or `"rgb"`.
        scale: The scale of the pairs.
        patch_size: Height and width of the low-resolution crops.
        crops_per_image: Crops of each image in an epoch.
        batch_size: Crops per batch, over all workers.
        **options: Those of `EpochDataset`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        color: str,
        scale: int,
        patch_size: int,
        crops_per_image: int,
        batch_size: int,
        **options: Any,
    ) -> None:
        super().__init__(len(pairs) * crops_per_image, batch_size, **options)
        self.pairs = pairs
        self.color = color
        self.scale = scale
        self.patch_size = patch_size

    def make_batch(  # noqa: D102
        self, chosen: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, ...]:
        return _as_batch(
            [self._crop(self.pairs[k % len(self.pairs)], rng) for k in chosen], self.color
        )

    def _crop(self, pair: Pair, rng: np.random.Generator) -> list[np.ndarray]:
        size, scale = self.patch_size, self.scale
        top, left = (int(rng.integers(n - size + 1)) for n in pair.low.shape[:2])
        small = (slice(top, top + size), slice(left, left + size))
        large = (
            slice(top * scale, (top + size) * scale),
            slice(left * scale, (left + size) * scale),
        )
        crops = [pair.low[small], pair.high[large]]
        mirror_rows, mirror_columns, transpose = rng.random(3) < 0.5
        if mirror_rows:
            crops = [image[::-1] for image in crops]
        if mirror_columns:
            crops = [image[:, ::-1] for image in crops]
        if transpose:
            crops = [image.swapaxes(0, 1) for image in crops]
        return crops


class CentreDataset(keras.utils.PyDataset):
    """The middle of each test image, once and in order.

    Args:
        pairs: List of `pairs.Pair`, none smaller than a crop.
        color: `"y"` or `"rgb"`.
        scale: The scale of the pairs.
        size: `(height, width)` of the low-resolution crops.
        batch_size: Crops per batch; the last one has what is left.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        color: str,
        scale: int,
        size: Sequence[int] | np.ndarray,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        crops = [(_middle(p.low, size, 1), _middle(p.high, size, scale)) for p in pairs]
        self.low, self.high = _as_batch(crops, color)

    def __len__(self) -> int:
        return -(-len(self.low) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.low[part], self.high[part]


def _middle(image: np.ndarray, size: Sequence[int] | np.ndarray, scale: int) -> np.ndarray:
    """The crop in the middle of the low-resolution image, at its own scale."""
    top, left = ((n // scale - m) // 2 * scale for n, m in zip(image.shape, size, strict=False))
    return image[top : top + size[0] * scale, left : left + size[1] * scale]
