"""Moments of a part of the pixels: the same pixels in the float and in the quantized pass."""

import keras
import numpy as np
import pytest

from repq_tf.branches import FeatureReading, feature_moments
from repq_tf.calibration.thinning import thin, thin_reading
from repq_tf.windows import convolve, same_window

array = keras.ops.convert_to_numpy


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("images", [1, 300, 10**6])
def test_the_convolutions_make_the_pixels_that_stay(size, strides, groups, images, rng):
    x = rng.normal(size=(2, 23, 30, 4)).astype("float32")
    kernel = rng.normal(size=(*size, 4 // groups, 4)).astype("float32")
    reading = FeatureReading(x, same_window(size, strides, x.shape[1:3]), strides)
    whole = convolve(x, kernel, groups, strides, reading.window)
    r = thin_reading(reading, size, images)
    part = convolve(r.x, kernel, groups, r.strides, r.window)
    height, width = whole.shape[1:3]
    n = max(1, int(np.sqrt(images * height * width / 2**15)))
    expected = array(whole)[:, :: min(n, height), :: min(n, width)]
    np.testing.assert_allclose(array(part), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(array(thin(whole, images)), expected)


def test_few_values_all_count(rng):
    y = rng.normal(size=(4, 40, 40, 2)).astype("float32")
    for mine, all_of_them in zip(
        feature_moments(thin(y, images=20)), feature_moments(y), strict=True
    ):
        np.testing.assert_array_equal(array(mine), array(all_of_them))
