import keras
import numpy as np
import pytest

from repq_tf.layers import QuantizedAveragePooling2D
from tests.block_case import array


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), [(2, None), (3, 2), ((1, 3), (2, 1))])
@pytest.mark.parametrize("zero", [-128, 0, 7])
def test_integer_division_of_stored_integers(padding, size, strides, zero):
    """Against Python's exact fractions, window by window."""
    rng = np.random.default_rng(0)
    stored = rng.integers(-128, 128, (2, 7, 8, 3))
    step = np.float32(0.037)
    layer = QuantizedAveragePooling2D(size, strides, padding, input_zero_point=zero)
    y = array(layer(((stored - zero) * step).astype("float32"), step))
    kh, kw = layer.pool_size
    sh, sw = layer.strides
    top, left = ((kh - 1) // 2, (kw - 1) // 2) if padding == "same" else (0, 0)
    if padding == "same":  # Keras's rule
        total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in ((7, sh, kh), (8, sw, kw))]
        top, left = total[0] // 2, total[1] // 2
    for i, j in np.ndindex(y.shape[1:3]):
        rows = slice(max(i * sh - top, 0), i * sh - top + kh)
        columns = slice(max(j * sw - left, 0), j * sw - left + kw)
        window = stored[:, rows, columns].reshape(2, -1, 3)
        total, count = window.sum(axis=1), window.shape[1]
        expected = np.sign(total) * np.floor(np.abs(total) / count + 0.5)
        np.testing.assert_allclose(y[:, i, j], (expected - zero) * step, rtol=1e-6, atol=1e-7)


def test_training_is_the_plain_average():
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
    y = QuantizedAveragePooling2D(3, 2, "same")(x, np.float32(0.1), training=True)
    plain = keras.layers.AveragePooling2D(3, 2, "same")(x)
    np.testing.assert_array_equal(array(y), array(plain))


def test_configuration():
    layer = QuantizedAveragePooling2D((2, 3), 1, "same", input_zero_point=-5, name="pool")
    assert QuantizedAveragePooling2D.from_config(layer.get_config()).get_config() == (
        layer.get_config()
    )
    with pytest.raises(ValueError, match="pool_size must be a positive"):
        QuantizedAveragePooling2D(0)
