"""MinError and LSQ's rule against brute force in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.quantizers import LSQ, levels, lsq_step, min_error_step

array = keras.ops.convert_to_numpy


def error(values, step, low, high):
    residual = np.rint(np.clip(values / step, low, high)) * step - values
    return float(np.sum(residual**2))


def brute_force(values, low, high):
    """The least squared error over a dense logarithmic grid, beyond both ends."""
    peak = np.abs(values).max()
    steps = np.geomspace(peak / high / 400, peak * 2, 2000)
    return min(error(values, step, low, high) for step in steps)


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=2000),
    "uniform": lambda rng: rng.uniform(-1, 1, 2000),
    "laplace": lambda rng: rng.laplace(size=2000),
    # A merged RepVGG kernel: an identity tap far outside of everything else.
    "one outlier": lambda rng: np.append(rng.normal(size=2000) * 0.02, 1.6),
    "few outliers": lambda rng: np.append(rng.normal(size=2000) * 0.02, [1.6, -1.2, 0.8]),
    "positive": lambda rng: np.maximum(rng.normal(size=2000), 0),
    "shifted": lambda rng: rng.normal(2, 0.5, size=2000),
    "negative": lambda rng: -np.abs(rng.normal(size=2000)),
    "two values": lambda rng: rng.choice((0.0, 0.7), 2000),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@settings(max_examples=8)
@given(bits=st.integers(2, 8), signed=st.booleans(), seed=st.integers(0, 99))
def test_min_error_finds_the_least_error(distribution, bits, signed, seed):
    low, high = levels(bits, signed, narrow=bits == 8)
    values = DISTRIBUTIONS[distribution](np.random.default_rng(seed)).astype("float32")
    step = float(min_error_step(values, low, high))
    least = brute_force(values.astype("float64"), low, high)
    negligible = 1e-9 * np.sum(values.astype("float64") ** 2)
    assert step > 0
    assert error(values.astype("float64"), step, low, high) <= 1.1 * least + negligible


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_long_tail_is_searched_far_below_the_maximum(bits, rng):
    """At max/rms 80, as merged RepVGG kernels have it, the best step clips the outlier."""
    low, high = levels(bits, True, False)
    values = np.append(rng.normal(size=20000) * 0.01, 0.8).astype("float32")
    step = float(min_error_step(values, low, high))
    assert step < 0.1 * 0.8 / high
    values = values.astype("float64")
    assert error(values, step, low, high) <= 1.02 * brute_force(values, low, high)


@pytest.mark.parametrize("shape", [(3, 3, 8, 5), (20_000, 5)])  # in one part, and in two
def test_channels_are_searched_apart(shape, rng):
    values = rng.normal(size=shape).astype("float32") * np.float32([1e-3, 0.1, 1, 5, 40])
    steps = array(min_error_step(values, -8, 7, per_channel=True))
    single = [float(min_error_step(values[..., c], -8, 7)) for c in range(5)]
    np.testing.assert_allclose(steps, single, rtol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_graph_finds_the_same_step(per_channel, rng):
    """There the search is a loop of TensorFlow's."""
    values = rng.normal(size=(3, 3, 4, 5)).astype("float32")
    graph = tf.function(lambda x: min_error_step(x, -8, 7, per_channel))
    expected = array(min_error_step(values, -8, 7, per_channel))
    np.testing.assert_allclose(array(graph(values)), expected, rtol=1e-5)


@pytest.mark.parametrize("rule", [min_error_step, lsq_step])
def test_a_channel_of_zeros_takes_the_mean_of_the_others(rule, rng):
    values = rng.normal(size=(3, 3, 4, 4)).astype("float32")
    values[..., 2] = 0
    steps = array(rule(values, -8, 7, True))
    assert steps[2] == pytest.approx(steps[[0, 1, 3]].mean(), rel=1e-6)
    for zeros in (np.zeros((2, 3), "float32"), np.zeros((2, 1), "float32")):
        np.testing.assert_array_equal(array(rule(zeros, -8, 7, True)), 1)
        assert float(rule(zeros, -8, 7)) == 1


def test_an_unsigned_grid_ignores_what_it_cannot_hold(rng):
    """Values below zero are zero to an unsigned grid, however large."""
    values = np.append(rng.uniform(0, 1, 500), [-50.0]).astype("float32")
    assert 0.5 / 15 < float(min_error_step(values, 0, 15)) < 1.2 / 15
    assert float(min_error_step(-np.ones(4, "float32"), 0, 15)) == 1


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12])
def test_extreme_magnitudes_give_a_usable_step(size, rng):
    values = (rng.normal(size=(50, 2)) * size).astype("float32")
    for rule in (min_error_step, lsq_step):
        steps = array(rule(values, -127, 127, True))
        assert np.isfinite(steps).all() and (steps > 0).all()


@given(bits=st.integers(2, 8), seed=st.integers(0, 99))
def test_lsq_rule(bits, seed):
    values = np.random.default_rng(seed).normal(size=(20, 3)).astype("float32")
    low, high = levels(bits, True, False)
    expected = 2 * np.abs(values).mean() / np.sqrt(high)
    assert float(lsq_step(values, low, high)) == pytest.approx(expected, rel=1e-5)
    expected = 2 * np.abs(values).mean(0) / np.sqrt(high)
    np.testing.assert_allclose(array(lsq_step(values, low, high, True)), expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["min_error", "lsq"])
@pytest.mark.parametrize("channels", [None, 4])
def test_initialize_sets_the_step(method, channels, rng):
    values = rng.normal(size=(3, 3, 2, 4)).astype("float32")
    layer = LSQ(bits=4, channels=channels)
    layer.build(None)
    layer.change.assign(layer.change + 3.0)
    layer.initialize(values, method)
    rule = {"min_error": min_error_step, "lsq": lsq_step}[method]
    expected = array(rule(values, -8, 7, channels is not None))
    np.testing.assert_allclose(array(layer.step), expected, rtol=1e-6)
    np.testing.assert_array_equal(array(layer.change), 0)
