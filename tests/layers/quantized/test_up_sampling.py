import keras
import numpy as np
import pytest

from repq_tf.layers import QuantizedUpSampling2D
from tests.block_case import array


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [2, 3, (1, 4), (5, 2)])
def test_training_is_kerass_upsampling(interpolation, size):
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    y = QuantizedUpSampling2D(size, interpolation)(x, np.float32(0.1), training=True)
    plain = keras.layers.UpSampling2D(size, interpolation=interpolation)(x)
    np.testing.assert_allclose(array(y), array(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, (1, 4)])
def test_bilinear_levels_are_rounded_once(size):
    """Against the interpolation in float64: weights of 11 bits are off by 1/4096 each."""
    levels = np.random.default_rng(0).integers(-128, 128, (2, 5, 4, 3))
    step = np.float32(0.037)
    y = QuantizedUpSampling2D(size, "bilinear")((levels * step).astype("float32"), step)
    sy, sx = size if isinstance(size, tuple) else (size, size)

    def weights(count, factor):
        place = np.clip((np.arange(count * factor) + 0.5) / factor - 0.5, 0, count - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(count)))

    exact = np.einsum("yi,xj,bijc->byxc", weights(5, sy), weights(4, sx), levels)
    got = array(y) / step
    np.testing.assert_allclose(got, np.rint(got), atol=1e-3)
    assert np.abs(np.rint(got) - exact).max() <= 0.5 + 2 * 255 / 4096


def test_bad_arguments():
    with pytest.raises(ValueError, match="interpolation must be one of .*'bicubic'"):
        QuantizedUpSampling2D(2, "bicubic")
    with pytest.raises(ValueError, match="size must be"):
        QuantizedUpSampling2D(0)
