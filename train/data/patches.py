"""Batches of crops of image pairs, for training and for a look at the test images."""

import keras
import numpy as np

from repq_tf.train.data.color import luma, to_network
from repq_tf.train.data.epoch import EpochDataset

COLORS = ("y", "rgb")


def channels_of(color):
    """Returns the number of channels of `--color`: 1 for luma, 3."""
    return 1 if color == "y" else 3


def as_color(pixels, color):
    """Returns uint8 RGB pixels as the channels that are trained, in 0 to 255."""
    return luma(pixels).astype("float32") if color == "y" else pixels


def pairs_as_color(pairs, color):
    """Returns pairs as a list of `(low, high)` of the channels that are trained."""
    return [(as_color(pair.low, color), as_color(pair.high, color)) for pair in pairs]


class PatchDataset(EpochDataset):
    """One epoch of random crops, mirrored and transposed at random; see `EpochDataset`.

    Args:
        images: List of `(low, high)`, pixels in 0 to 255, none smaller than a crop.
        scale: Their scale.
        patch_size: Height and width of the low-resolution crops.
        crops_per_image: Crops of each image in an epoch.
        batch_size: Crops per batch, over all workers.
        **options: Those of `EpochDataset`.
    """

    def __init__(self, images, scale, patch_size, crops_per_image, batch_size, **options):
        super().__init__(len(images) * crops_per_image, batch_size, **options)
        self.images = images
        self.scale = scale
        self.patch_size = patch_size

    def make_batch(self, chosen, rng):  # noqa: D102
        crops = [self._crop(*self.images[k % len(self.images)], rng) for k in chosen]
        return tuple(to_network(np.stack(images)) for images in zip(*crops, strict=True))

    def _crop(self, low, high, rng):
        size, scale = self.patch_size, self.scale
        top, left = (int(rng.integers(n - size + 1)) for n in low.shape[:2])
        low = low[top : top + size, left : left + size]
        large = (
            slice(top * scale, (top + size) * scale),
            slice(left * scale, (left + size) * scale),
        )
        crops = low, high[large]
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
        images: List of `(low, high)`, pixels in 0 to 255, none smaller than a crop.
        scale: Their scale.
        size: `(height, width)` of the low-resolution crops.
        batch_size: Crops per batch; the last one has what is left.
    """

    def __init__(self, images, scale, size, batch_size):
        super().__init__()
        self.batch_size = batch_size
        self.images = [
            (_middle(low, size, 1), _middle(high, size, scale)) for low, high in images
        ]

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        part = self.images[index * self.batch_size : (index + 1) * self.batch_size]
        return tuple(to_network(np.stack(images)) for images in zip(*part, strict=True))


def _middle(image, size, scale):
    """The crop in the middle of the low-resolution image, at its own scale."""
    top, left = ((n // scale - m) // 2 * scale for n, m in zip(image.shape, size, strict=False))
    return image[top : top + size[0] * scale, left : left + size[1] * scale]
