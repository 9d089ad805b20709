"""Images made from batch norms: their features have the moments, by NumPy, and they serve."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers as blocks

array = keras.ops.convert_to_numpy


def real_images(count=64):
    """Smooth images, far from normal values: their pixels have mean 3 and deviation 2."""
    rng = np.random.default_rng(0)
    small = rng.normal(size=(count, 4, 4, 3))
    images = np.repeat(np.repeat(small, 3, 1), 3, 2) * 2 + 3
    return images.astype("float32")


def stock():
    inputs = keras.Input((12, 12, 3))
    x = inputs
    for k in range(3):
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{k}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{k}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def branched():
    """Branches of every kind: sums, chains whose links are normalized, roots."""
    inputs = keras.Input((12, 12, 3))
    x = blocks.RepVGGBlock(8, activation="relu")(inputs)
    x = blocks.DiverseBranchBlock(8, strides=2, activation="relu")(x)
    x = blocks.QARepVGGBlock(8, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


def remember(model, images):
    """Fits the moving moments alone."""
    keras.utils.set_random_seed(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(30):
        model(images, training=True)
    return model


def test_features_have_the_moments_of_the_batch_norms():
    model = remember(stock(), real_images())
    images = repq_tf.synthesize_images(model, count=32, iterations=200, verbose=False)
    assert images.shape == (32, 12, 12, 3) and images.dtype == np.float32
    noise = np.random.default_rng(1).normal(size=images.shape).astype("float32")
    distances = []
    for x in (images, noise):
        off = []
        for k in range(3):
            norm = model.get_layer(f"bn{k}")
            features = keras.Model(model.input, model.get_layer(f"conv{k}").output)
            y = array(features(x)).astype("f8").reshape(-1, 8)
            wanted = np.sqrt(array(norm.moving_variance))
            off.append(np.abs(y.mean(0) - array(norm.moving_mean)) / wanted)
            off.append(np.abs(y.std(0) / wanted - 1))
        distances.append(np.mean(off))
    assert distances[0] < 0.1 and distances[1] > 0.5


@pytest.mark.slow(10)
def test_branches_count_and_the_quantized_network_is_far_better_than_with_noise():
    real = real_images()
    model = remember(branched(), real)
    before = [array(w) for w in model.weights]
    made = repq_tf.synthesize_images(model, verbose=False)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, array(new))
    noise = np.random.default_rng(1).normal(size=made.shape).astype("float32")
    wanted = array(model(real))
    errors = []
    for images in (made, noise):
        quantized = repq_tf.post_training_quantize(
            model, calibration_data=images, verbose=False
        )
        errors.append(np.square(array(quantized(real)) - wanted).mean())
    energy = np.square(wanted - wanted.mean(0)).mean()
    assert errors[0] < 0.03 * energy and errors[1] > 15 * errors[0]


def test_what_has_no_batch_norms_is_refused():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3)])
    with pytest.raises(ValueError, match="has no batch norms"):
        repq_tf.synthesize_images(model, verbose=False)
    with pytest.raises(ValueError, match="count must be"):
        repq_tf.synthesize_images(model, count=0)
    inputs = keras.Input((None, None, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(3, 3)(inputs))
    with pytest.raises(ValueError, match="an input of a fixed size"):
        repq_tf.synthesize_images(keras.Model(inputs, x), verbose=False)
