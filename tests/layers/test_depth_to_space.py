"""Depth to space against its definition."""

import keras
import numpy as np
import pytest

from repq_tf.layers import DepthToSpace


def defined(x, size):
    """Pixel by pixel."""
    batch, height, width, channels = x.shape
    channels //= size**2
    y = np.empty((batch, height * size, width * size, channels), x.dtype)
    for h in range(height * size):
        for w in range(width * size):
            first = ((h % size) * size + w % size) * channels
            y[:, h, w] = x[:, h // size, w // size, first : first + channels]
    return y


# Every backend but TensorFlow rearranges axes; so does the TensorFlow one if told to.
@pytest.fixture(params=["tensorflow", "other"])
def path(request, monkeypatch):
    monkeypatch.setattr("repq_tf.layers.depth_to_space.backend", lambda: request.param)


@pytest.mark.parametrize(("size", "channels"), [(2, 1), (3, 1), (2, 3), (4, 2)])
def test_definition(path, size, channels, rng):
    x = rng.normal(size=(2, 3, 5, channels * size**2)).astype("float32")
    np.testing.assert_array_equal(DepthToSpace(size)(x), defined(x, size))


def test_images_of_any_size(path, rng):
    images = keras.Input((None, None, 8))
    model = keras.Model(images, DepthToSpace(2)(images))
    assert model.output.shape == (None, None, None, 2)
    for shape in ((1, 3, 4, 8), (2, 5, 2, 8)):
        x = rng.normal(size=shape).astype("float32")
        np.testing.assert_array_equal(model.predict(x, verbose=0), defined(x, 2))


def test_save_and_load(tmp_path):
    images = keras.Input((4, 4, 9))
    model = keras.Model(images, DepthToSpace(3, name="up")(images))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("up").block_size == 3


@pytest.mark.parametrize("size", [0, 1, 2.5, None])
def test_bad_block_sizes(size):
    with pytest.raises(ValueError, match=f"block_size must be .* Received: {size}"):
        DepthToSpace(size)


def test_bad_channels():
    with pytest.raises(ValueError, match="up: .* multiple of 4. Received: 6"):
        DepthToSpace(2, name="up")(np.zeros((1, 2, 2, 6)))
