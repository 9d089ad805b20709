"""The analytic correction: means of clipped normal distributions, and where they go."""

import numpy as np
import pytest

from repq_tf.calibration.expected import clipped_normal
from tests.quantization.networks import array, block_of, images, layers, network, quantize

INF = np.inf
LOW = {"rules": {"*": {"weight_bits": 2}}}


@pytest.mark.parametrize("bounds", [(0, INF), (0, 6), (-1, 2), (-INF, 1), (-INF, INF)])
def test_moments_are_those_of_drawn_values(bounds, rng):
    """Of a million in float64; five deviations of their mean and of their variance."""
    mean, deviation = rng.normal(0, 3, 6), np.exp(rng.normal(0, 1, 6))
    drawn = np.clip(mean + deviation * rng.standard_normal((10**6, 6)), *bounds)
    found, variance = clipped_normal(mean, deviation**2, *bounds)
    away = drawn - drawn.mean(axis=0)
    assert (np.abs(found - drawn.mean(axis=0)) < 5e-3 * drawn.std(axis=0) + 1e-6).all()
    error = np.sqrt(np.var(away**2, axis=0) / len(drawn))
    assert (np.abs(variance - drawn.var(axis=0)) < 5 * error + 1e-6).all()


def test_constants_are_clipped():
    found, variance = clipped_normal(np.array([-2.0, 0.5, 9.0]), np.zeros(3), 0, 6)
    np.testing.assert_allclose(found, [0, 0.5, 6], atol=1e-12)
    np.testing.assert_allclose(variance, 0, atol=1e-12)


def chain(x):
    """A batch norm before a grouped convolution, a sum, and a maximum."""
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Conv2D(8, 3, groups=4, padding="same", name="grouped")(x)
    x = layers.ReLU(6, name="relu6")(layers.Add(name="sum")([x, x]))
    x = layers.Conv2D(6, 1, activation="relu", name="behind")(x)
    return layers.Conv2D(4, 1, name="last")(layers.MaxPooling2D(name="maximum")(x))


@pytest.fixture(scope="module")
def models():
    model = network(chain)
    found = {correct: quantize(model, correct=correct, **LOW) for correct in ("analytic", None)}
    return model, found


def shifts(models, name):
    """By what the correction moved the bias of a layer, and the change of its kernel."""
    blocks = [block_of(found, name) for found in models[1].values()]
    one, other = (array(block.inner.merge().bias) for block in blocks)
    kernel = blocks[0].inner.merge().kernel
    change = array(blocks[0].weight_quantizer(kernel)) - array(kernel)
    return one - other, change.sum(axis=(0, 1))


def test_a_batch_norm_before_tells_the_mean(models):
    """By groups, written out."""
    shift, change = shifts(models, "grouped")
    norm = models[0].get_layer("bn")
    beta, gamma = (array(v).astype("float64") for v in (norm.beta, norm.gamma))
    drawn = beta + gamma * np.random.default_rng(0).standard_normal((10**6, 8))
    mean = np.maximum(drawn, 0).mean(axis=0)
    expected = [-change[:, o] @ mean[o // 2 * 2 : o // 2 * 2 + 2] for o in range(8)]
    np.testing.assert_allclose(shift, expected, atol=0.01 * np.abs(expected).max())


def test_images_tell_the_moments_where_there_is_no_batch_norm(models):
    """Behind a sum, whose parts are taken to be independent."""
    shift, change = shifts(models, "behind")
    float_model = models[0]
    outputs = float_model.get_layer("grouped").output
    x = images(shape=float_model.input_shape[1:])
    y = array(type(float_model)(float_model.input, outputs)(x))
    mean, deviation = 2 * y.mean(axis=(0, 1, 2)), np.sqrt(2) * y.std(axis=(0, 1, 2))
    drawn = mean + deviation * np.random.default_rng(0).standard_normal((10**6, 8))
    expected = -np.clip(drawn, 0, 6).mean(axis=0) @ change
    np.testing.assert_allclose(shift, expected, atol=0.02 * np.abs(expected).max())


def test_behind_a_maximum_the_mean_is_measured(models):
    """So that the outputs' means are the float network's."""
    x = images(shape=models[0].input_shape[1:])
    real, found, without = (
        array(m(x)).mean(axis=(0, 1, 2)) for m in (models[0], *models[1].values())
    )
    assert np.abs(found - real).max() < 0.1 * np.abs(without - real).max()
