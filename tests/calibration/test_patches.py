"""Patches and kernels as matrices: their products are what the convolution makes."""

import keras
import numpy as np
import pytest

from repq_tf.branches import FeatureReading
from repq_tf.calibration.patches import PatchSampler, kernel_matrix
from repq_tf.kernels import AffineKernel
from repq_tf.windows import convolve

array = keras.ops.convert_to_numpy


@pytest.mark.parametrize(
    ("size", "groups", "strides", "window"),
    [
        ((3, 3), 1, (1, 1), ((1, 1), (1, 1))),
        ((3, 2), 2, (2, 1), ((0, 1), (1, 0))),
        ((3, 3), 6, (2, 2), ((1, 1), (1, 1))),
        ((1, 1), 1, (2, 2), ((0, 0), (0, 0))),
    ],
)
def test_products_are_pixels_of_the_output(size, groups, strides, window, rng):
    """And each image gives as many, all over the output: all pixels, if these are few."""
    x = rng.normal(size=(60, 9, 8, 6)).astype("float32")
    kernel = rng.normal(size=(*size, 6 // groups, 12)).astype("float32")
    affine = AffineKernel(kernel, np.zeros(12, "float32"), groups)
    sampler = PatchSampler(size, groups, len(x))
    for part in (x[:13], x[13:]):
        sampler.add(FeatureReading(keras.ops.convert_to_tensor(part), window, strides))
    products = sampler.drawn() @ kernel_matrix(affine)
    products = products.transpose(1, 0, 2).reshape(len(x), -1, 12)
    y = array(convolve(keras.ops.convert_to_tensor(x), kernel, groups, strides, window))
    y = y.reshape(len(x), -1, 12)
    assert products.shape[1] == min(2**12 // len(x), y.shape[1])
    distance = np.abs(products[:, :, None] - y[:, None]).max(axis=3)
    np.testing.assert_array_less(distance.min(axis=2), 1e-4)
    drawn = np.bincount(distance.argmin(axis=2).ravel(), minlength=y.shape[1])
    assert drawn.min() > (0.3 if products.shape[1] < y.shape[1] else 0.99) * drawn.mean()


def test_patches_do_not_grow_with_the_images(rng):
    """Of more images than patches, some at equal distances are read."""
    sampler, images = PatchSampler((3, 3), 1, 1000), 0
    for size in (300, 1, 699):
        index = np.arange(images, images + size, dtype="float32")
        x = np.broadcast_to(index[:, None, None, None], (size, 4, 4, 600))
        sampler.add(FeatureReading(keras.ops.convert_to_tensor(x), ((0, 0), (0, 0)), (1, 1)))
        images += size
    patches = sampler.drawn()[0]
    assert patches.size <= 2**18
    assert set(np.diff(np.unique(patches))) == {21}
