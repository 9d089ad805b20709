import math

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.datasets import load_sample_image

from repq_tf.train.tasks.super_resolution.color import (
    FINE_STEP,
    PIXEL_STEP,
    luma,
    to_network,
    to_pixels,
)
from repq_tf.train.tasks.super_resolution.image_quality import psnr, shave, ssim


@pytest.fixture
def images(rng):
    photograph = load_sample_image("china.jpg")[100:160, 200:275].astype("float64")
    noisy = np.clip(photograph + rng.normal(0, 12, photograph.shape), 0, 255)
    return photograph, noisy


def test_luma_is_that_of_scikit_image(images):
    photograph = images[0].astype("uint8")
    wanted = rgb2ycbcr(photograph)[..., :1]
    np.testing.assert_allclose(luma(photograph), wanted, atol=1e-9)
    ends = luma(np.array([[0, 0, 0], [255, 255, 255]], "uint8"))
    np.testing.assert_allclose(ends, [[16], [235]], atol=1e-9)


def test_psnr_is_that_of_scikit_image(images):
    wanted = peak_signal_noise_ratio(*images, data_range=255)
    assert psnr(images[1], images[0]) == pytest.approx(wanted, abs=1e-9)
    assert psnr(images[0], images[0]) == math.inf


def test_ssim_is_that_of_scikit_image(images):
    x, y = (luma(image)[..., 0] for image in images)
    wanted = structural_similarity(
        y, x, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(y, x) == pytest.approx(wanted, abs=1e-9)
    assert ssim(x, x) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"at least 11x11. Received: \(10, 20\)"):
        ssim(x[:10, :20], y[:10, :20])


def test_the_border_is_shaved(images):
    assert shave(images[0], 3).shape == (54, 69, 3)
    np.testing.assert_array_equal(shave(images[0], 3)[0, 0], images[0][3, 3])


def test_all_levels_of_a_pixel_are_int8_numbers():
    levels = np.arange(256)
    numbers = to_network(levels)
    assert numbers.dtype == "float32"
    np.testing.assert_array_equal(numbers / np.float32(PIXEL_STEP), levels - 128)
    np.testing.assert_array_equal(numbers / np.float32(FINE_STEP), 128 * (levels - 128))
    np.testing.assert_array_equal(to_pixels(numbers), levels)
    np.testing.assert_array_equal(to_pixels([-1.5, 1.0, 1.5]), [0, 255, 255])
