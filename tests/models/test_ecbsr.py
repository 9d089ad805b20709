"""Super resolution: what ECBSR computes."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import models
from repq_tf.layers import ECB, ConvBlock
from tests.models.outline import blocks


@pytest.fixture
def images(rng):
    return rng.uniform(0, 255, (2, 5, 6, 3)).astype("float32")


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_without_a_residual_pixels_are_repeated(scale, channels, images):
    model = models.ecbsr_m4c8_plain(scale, channels, kernel_initializer="zeros")
    images = images[..., :channels]
    expected = images.repeat(scale, axis=1).repeat(scale, axis=2)
    np.testing.assert_array_equal(model(images), expected)


@pytest.mark.slow
def test_images_of_any_size_or_of_one():
    assert models.ecbsr_m4c8().input.shape == (None, None, None, 1)
    assert models.ecbsr_m4c8(scale=3, channels=3).output.shape == (None, None, None, 3)
    model = models.ecbsr_m4c8(scale=4, input_shape=(10, 12, 1))
    assert model.output.shape == (None, 40, 48, 1)


@pytest.mark.parametrize("name", ["ecbsr_m4c8", "ecbsr_m4c8_plain"])
def test_layers(name):
    model = models.build(name, scale=2)
    kind = ConvBlock if name.endswith("plain") else ECB
    assert [type(block) for block in blocks(model)] == [kind] * 6
    assert [block.filters for block in blocks(model)] == [8] * 5 + [4]
    slopes = [layer for layer in model.layers if type(layer) is keras.layers.PReLU]
    assert len(slopes) == 5
    for layer in slopes:
        np.testing.assert_array_equal(layer.get_weights()[0], np.full((1, 1, 8), 0.25))
    names = [layer.name for layer in model.layers]
    assert names[:4] == ["image", "first", "first_prelu", "block1"]
    assert names[-1] == "upscaled"


def test_any_depth_and_width():
    model = models.ecbsr(m=2, c=12, scale=3, channels=3, multiplier=1, merged=True)
    assert model.name == "ecbsr_m2c12"
    assert [block.filters for block in blocks(model)] == [12, 12, 12, 27]
    assert all(block.multiplier == 1 and block.merged for block in blocks(model))
    assert "ecbsr" not in models.list_models()


def test_identities_where_channels_are_equal():
    def identities(c, **options):
        model = models.ecbsr(m=1, c=c, identity=True, **options)
        return [block.identity for block in blocks(model)]

    assert identities(8, scale=2) == [False, True, False]
    assert identities(16, scale=4) == [False, True, True]
    assert identities(3, scale=2, channels=3) == [True, True, False]


@pytest.mark.slow
def test_training_moves_every_weight_and_merging_keeps_the_function(images):
    model = models.ecbsr(m=1, c=4, scale=2, channels=3)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1e-4), "mean_absolute_error")
    large = images.repeat(2, axis=1).repeat(2, axis=2)[..., ::-1]
    assert np.isfinite(model.train_on_batch(images, large))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        if "_pointwise/bias" in variable.path:
            continue  # the edge filters behind it sum to 0
        new = np.asarray(variable)
        assert np.isfinite(new).all() and (new != old).any(), variable.path
    merged, output = repq_tf.merge(model), np.asarray(model(images))
    kinds = {type(layer).__name__ for layer in merged.layers}
    assert "Conv2D" in kinds and "ECB" not in kinds
    np.testing.assert_allclose(merged(images), output, atol=1e-5 * abs(output).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m must be a positive whole number. Received: 0"),
        ({"c": 2.5}, "c must be a positive whole number. Received: 2.5"),
        ({"scale": 1}, "scale must be at least 2. Received: 1"),
        ({"scale": "2"}, "scale must be a positive whole number. Received: '2'"),
        ({"channels": 0}, "channels must be .* Received: 0"),
        ({"input_shape": (8, 8)}, r"\(height, width, channels\).* Received: \(8, 8\)"),
        ({"input_shape": (8, 8, None)}, "size of input_shape .* Received: None"),
        ({"input_shape": (8, 8, 3)}, r"end in channels, 1. Received: \(8, 8, 3\)"),
        ({"classes": 10}, "block_options of ecbsr_m4c8 .* multiplier.* Received: classes"),
        ({"width": 2}, "block_options .* Received: width"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.ecbsr(**{"m": 4, "c": 8, **arguments})
