"""Where a merged batch norm gets its moments: five modes against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.branches import (
    BatchNorm,
    BatchNormStatistics,
    Convolution,
    FeatureReading,
    Identity,
    Sum,
    check_mode,
)
from repq_tf.kernels import AffineKernel
from tests.branches.expressions import windows
from tests.reference import convolution, crop, moments

ops = keras.ops
array = ops.convert_to_numpy


@pytest.fixture(autouse=True)
def _float64(float64):
    pass


def kernel(seed, size, in_channels, out_channels, groups):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(*size, in_channels // groups, out_channels))
    return AffineKernel(
        ops.convert_to_tensor(weight),
        ops.convert_to_tensor(rng.normal(size=out_channels)),
        groups,
    )


def statistics(mode, channels, **options):
    layer = BatchNormStatistics(mode=mode, momentum=0.9, **options)
    layer.build((channels,))
    layer.moving_mean.assign(np.linspace(-1, 1, channels))
    layer.moving_variance.assign(np.linspace(0.5, 2, channels))
    return layer


def features(seed, batch, channels, spatial=(5, 6)):
    """Not white, not centred: what the estimates approximate must show."""
    rng = np.random.default_rng(seed)
    slope = np.arange(spatial[0])[:, None, None] * rng.normal(size=channels)
    return np.maximum(rng.normal(0.3, 1, (batch, *spatial, channels)) + slope, 0)


def taken(mode, x, affine, window=((0, 0), (0, 0)), strides=(1, 1), **options):
    layer = statistics(mode, affine.out_channels, **options)
    reading = FeatureReading(ops.convert_to_tensor(x), window, strides)
    mean, variance = layer.of_kernel(reading, affine)
    return array(mean), array(variance), layer


CASES = {
    "size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "strides": st.sampled_from(((1, 1), (2, 2), (1, 2), (3, 1))),
    "make_window": windows(),
    "groups": st.sampled_from((1, 1, 2, 4)),
    "seed": st.integers(0, 999),
}


@pytest.mark.slow
@settings(max_examples=60)
@given(**CASES)
def test_batch_is_exact_and_the_moving_statistics_follow(
    size, strides, make_window, groups, seed
):
    if groups > 1 and len(set(strides)) > 1:
        strides = (2, 2)  # TensorFlow's float64 depthwise convolution wants equal ones.
    affine = kernel(seed, size, 4, 4, groups)
    x = features(seed, 3, 4)
    window = make_window(size, strides, x.shape[1:3])
    mean, variance, layer = taken("batch", x, affine, window, strides)
    y = convolution(x, affine.kernel, affine.bias, groups, strides, window)
    np.testing.assert_allclose(mean, moments(y)[0], atol=1e-12)
    np.testing.assert_allclose(variance, moments(y)[1], atol=1e-12)
    moved = 0.9 * np.linspace(-1, 1, 4) + 0.1 * mean
    np.testing.assert_allclose(array(layer.moving_mean), moved, atol=1e-14)
    moved = 0.9 * np.linspace(0.5, 2, 4) + 0.1 * variance
    np.testing.assert_allclose(array(layer.moving_variance), moved, atol=1e-14)


@pytest.mark.slow
@settings(max_examples=60)
@given(**CASES)
def test_estimate_has_the_exact_mean_and_the_papers_variance(
    size, strides, make_window, groups, seed
):
    affine = kernel(seed, size, 4, 8, groups)
    x = features(seed, 3, 4)
    window = make_window(size, strides, x.shape[1:3])
    mean, variance, layer = taken("estimate", x, affine, window, strides)
    y = convolution(x, affine.kernel, affine.bias, groups, strides, window)
    np.testing.assert_allclose(mean, moments(y)[0], atol=1e-12)
    np.testing.assert_allclose(variance, equation_6(x, affine), atol=1e-12)
    moved = 0.9 * np.linspace(-1, 1, 8) + 0.1 * mean
    np.testing.assert_allclose(array(layer.moving_mean), moved, atol=1e-14)


@settings(max_examples=30)
@given(**CASES)
def test_literal_estimate_is_equations_5_and_6(size, strides, make_window, groups, seed):
    affine = kernel(seed, size, 4, 8, groups)
    x = features(seed, 3, 4)
    window = make_window(size, strides, x.shape[1:3])
    mean, variance, _ = taken("estimate", x, affine, window, strides, literal_estimate=True)
    np.testing.assert_allclose(mean, equation_5(x, affine), atol=1e-12)
    np.testing.assert_allclose(variance, equation_6(x, affine), atol=1e-12)


def equation_5(x, affine):
    """E_o = sum_i E[X_i] sum_{h,d} W[h,d,i,o], and the bias; i runs over o's group."""
    return _equation(x.mean((0, 1, 2)), array(affine.kernel), affine) + array(affine.bias)


def equation_6(x, affine):
    """V_o = sum_i V[X_i] sum_{h,d} W[h,d,i,o]^2."""
    return _equation(x.var((0, 1, 2)), array(affine.kernel) ** 2, affine)


def _equation(moment, weight, affine):
    outputs = affine.out_channels // affine.groups
    inputs = weight.shape[2]
    total = np.zeros(affine.out_channels)
    for o in range(affine.out_channels):
        for i in range(inputs):
            total[o] += moment[(o // outputs) * inputs + i] * weight[:, :, i, o].sum()
    return total


@pytest.mark.parametrize("mode", ["batch", "estimate"])
def test_the_moments_of_an_identity_are_exact(mode):
    x = features(0, 4, 3)
    identity = AffineKernel.identity(3, "float64")
    identity = AffineKernel(*map(ops.convert_to_tensor, (identity.kernel, identity.bias)), 3)
    mean, variance, _ = taken(mode, x, identity)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), atol=1e-13)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), atol=1e-13)


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("window", [((1, 1), (1, 0)), ((-1, -1), (0, -2))])
def test_per_channel_scaling_needs_no_convolution_and_stays_exact(mode, window):
    x = features(0, 8, 3)
    affine = kernel(0, (1, 1), 3, 3, 3)
    mean, variance, _ = taken(mode, x, affine, window, (2, 1))
    seen = x if mode == "batch" else x[:1]
    y = crop(seen, window)[:, ::2] * array(affine.kernel)[0, 0, 0] + array(affine.bias)
    np.testing.assert_allclose(mean, moments(y)[0], atol=1e-13)
    np.testing.assert_allclose(variance, moments(y)[1], atol=1e-13)


@pytest.mark.parametrize(
    ("batch", "fraction", "images"),
    [(16, 1 / 8, [0, 8]), (17, 1 / 8, [0, 8, 16]), (3, 1 / 8, [0]), (7, 0.3, [0, 3, 6])],
)
def test_sample_is_exact_on_every_kth_image(batch, fraction, images):
    x, affine = features(1, batch, 4), kernel(1, (3, 3), 4, 5, 1)
    window = ((1, 1), (1, 1))
    mean, variance, layer = taken("sample", x, affine, window, sample_fraction=fraction)
    y = convolution(x[images], affine.kernel, affine.bias, window=window)
    np.testing.assert_allclose(mean, moments(y)[0], atol=1e-12)
    np.testing.assert_allclose(variance, moments(y)[1], atol=1e-12)
    moved = 0.9 * np.linspace(-1, 1, 5) + 0.1 * mean
    np.testing.assert_allclose(array(layer.moving_mean), moved, atol=1e-14)


@pytest.mark.parametrize("mode", ["running", "restored"])
def test_running_and_restored_use_the_moving_statistics_and_leave_them(mode):
    x, affine = features(1, 4, 4), kernel(1, (3, 3), 4, 5, 1)
    mean, variance, layer = taken(mode, x, affine)
    for now in (mean, array(layer.moving_mean)):
        np.testing.assert_array_equal(now, np.linspace(-1, 1, 5))
    for now in (variance, array(layer.moving_variance)):
        np.testing.assert_array_equal(now, np.linspace(0.5, 2, 5))


@pytest.mark.parametrize(
    ("mode", "literal"),
    [("batch", False), ("sample", False), ("estimate", False), ("estimate", True)],
)
def test_gradients_flow_through_the_moments(mode, literal, rng):
    """To the kernel, to its bias and to the features; checked by finite differences."""
    x, affine = features(2, 9, 3, (4, 4)), kernel(2, (3, 2), 3, 4, 1)
    weights = [ops.convert_to_tensor(rng.normal(size=4)) for _ in range(2)]

    def loss(values):
        layer = statistics(mode, 4, literal_estimate=literal, sample_fraction=1 / 4)
        reading = FeatureReading(values[0], ((1, 1), (0, 1)), (2, 1))
        mean, variance = layer.of_kernel(reading, AffineKernel(values[1], values[2]))
        return ops.sum(mean * weights[0]) + ops.sum(ops.log(variance) * weights[1])

    values = [
        tf.constant(x),
        tf.constant(array(affine.kernel)),
        tf.constant(array(affine.bias)),
    ]
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(values)
    for n, gradient in enumerate(tape.gradient(total, values)):
        direction = rng.normal(size=values[n].shape)
        sides = []
        for sign in (1, -1):
            moved = list(values)
            moved[n] = values[n] + sign * 1e-6 * direction
            sides.append(float(loss(moved)))
        expected = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(np.sum(array(gradient) * direction), expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("synchronized", [True, False])
def test_replicas_share_one_moving_mean(synchronized, two_replicas):
    """Also where each normalizes by itself: whichever replica is saved, it is the mean."""
    x, affine = features(1, 8, 4), kernel(1, (3, 3), 4, 5, 1)
    with two_replicas.scope():
        layer = statistics("batch", 5, synchronized=synchronized)

    def half(context):
        first = 4 * context.replica_id_in_sync_group
        return tf.constant(x[first : first + 4])

    def run(x):
        return layer.of_kernel(FeatureReading(x, ((0, 0), (0, 0)), (1, 1)), affine)

    halves = two_replicas.experimental_distribute_values_from_function(half)
    results = tf.function(two_replicas.run)(run, (halves,))
    parts = [x] if synchronized else [x[:4], x[4:]]
    parts = [moments(convolution(part, affine.kernel, affine.bias)) for part in parts]
    start = (np.linspace(-1, 1, 5), np.linspace(0.5, 2, 5))
    for n, moving in enumerate((layer.moving_mean, layer.moving_variance)):
        own = two_replicas.experimental_local_results(results[n])
        for replica, result in enumerate(own):
            expected = parts[0 if synchronized else replica][n]
            np.testing.assert_allclose(array(result), expected, atol=1e-12)
        expected = 0.9 * start[n] + 0.1 * np.mean([part[n] for part in parts], axis=0)
        for value in two_replicas.experimental_local_results(moving.value):
            np.testing.assert_allclose(array(value), expected, atol=1e-12)


def test_branches_share_the_moments_of_the_input():
    """One pass over the features serves every branch of `estimate`, one subset `sample`."""
    block = Sum(
        [BatchNorm(Convolution(3, 3)), BatchNorm(Convolution(3, 1)), BatchNorm(Identity())]
    )
    block.build((None, None, None, 3))
    for child in block.children:
        child.statistics.mode = "estimate"
    reading = FeatureReading(ops.convert_to_tensor(features(0, 2, 3)), ((1, 1), (1, 1)), (1, 1))
    block.merge(reading)
    first = reading.input_moments()
    assert all(
        a is b
        for a, b in zip(first, reading.inside((3, 3), (1, 1)).input_moments(), strict=True)
    )
    assert reading.sampled(2) is reading.inside((3, 3), (1, 1)).sampled(2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mode", ["batch", "estimate", "sample"])
def test_half_precision_features_have_float32_moments(mode, dtype):
    """A mean of thousands of half-precision numbers is not added up in half precision."""
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    x = ops.cast(features(0, 64, 2, (16, 16)) + 3, dtype)
    affine = AffineKernel(ops.ones((1, 1, 1, 2), "float32"), ops.zeros(2, "float32"), 2)
    layer = statistics(mode, 2)
    mean, variance = layer.of_kernel(FeatureReading(x, ((0, 0), (0, 0)), (1, 1)), affine)
    seen = array(ops.cast(x, "float32")).astype("float64")
    seen = seen[::8] if mode == "sample" else seen
    np.testing.assert_allclose(array(mean), moments(seen)[0], rtol=1e-5)
    np.testing.assert_allclose(array(variance), moments(seen)[1], rtol=1e-2)
    for value in (mean, variance, layer.moving_mean, layer.moving_variance):
        assert keras.backend.standardize_dtype(value.dtype) == "float32"


def test_a_constant_channel_has_no_negative_variance():
    keras.config.set_dtype_policy("float32")
    x = np.full((8, 5, 5, 2), 1000.1, "float32")
    affine = AffineKernel(ops.ones((1, 1, 1, 2), "float32"), ops.zeros(2, "float32"), 2)
    for mode in ("batch", "estimate"):
        _, variance, _ = taken(mode, x, affine)
        assert (variance >= 0).all()


def test_unknown_mode():
    with pytest.raises(ValueError, match="bn_statistics must be one of.*restored.*'exact'"):
        check_mode("exact")
    with pytest.raises(ValueError, match="bn_statistics"):
        BatchNormStatistics(mode="exact")
