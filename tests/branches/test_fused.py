"""Batch norm by TensorFlow's one operator, against its formulas in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from repq_tf.branches import OABN, BatchNorm, Identity
from repq_tf.branches.moments import feature_moments, image_moments
from repq_tf.windows import with_every

ops = keras.ops
array = ops.convert_to_numpy
EPSILON = 1e-3


def norm(channels, kind=BatchNorm, **options):
    node = kind(Identity(), epsilon=EPSILON, **options)
    node.build((None, None, None, channels))
    node.gamma.assign(np.linspace(-1.5, 2, channels))
    node.beta.assign(np.linspace(1, -1, channels))
    node.statistics.moving_mean.assign(np.linspace(-1, 1, channels))
    node.statistics.moving_variance.assign(np.linspace(0.5, 2, channels))
    return node


def run(node, y, upstream, bias=None):
    """The normalized features, gradients to all that has one, and the moving statistics."""
    tensors = [y] if bias is None else [y, bias]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        z = node.normalize(y, True, bias)
    found = tape.gradient(z, [*tensors, node.gamma.value, node.beta.value], upstream)
    statistics = node.statistics
    return [z, *found, statistics.moving_mean.value, statistics.moving_variance.value]


def formulas(node, y, upstream, bias):
    """The same in NumPy."""
    y, g = (np.asarray(v, np.float64) for v in (y, upstream))
    gamma, beta = (array(v).astype("float64") for v in (node.gamma, node.beta))
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    unit = (y - mean) / np.sqrt(variance + EPSILON)
    to_y = g - g.mean((0, 1, 2)) - unit * (g * unit).mean((0, 1, 2))
    to_y *= gamma / np.sqrt(variance + EPSILON)
    moving_mean = 0.9 * array(node.statistics.moving_mean) + 0.1 * (mean + bias)
    moving_variance = 0.9 * array(node.statistics.moving_variance) + 0.1 * variance
    sums = (g * unit).sum((0, 1, 2)), g.sum((0, 1, 2))
    return [unit * gamma + beta, to_y, np.zeros_like(bias), *sums, moving_mean, moving_variance]


def operators(function, *args):
    graph = tf.function(function, autograph=False).get_concrete_function(*args).graph
    return {op.type for op in graph.get_operations()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (2, 1, 1, 16), (1, 1, 1, 5)])
def test_values_gradients_and_moving_statistics_are_the_formulas(dtype, shape, rng):
    """A bias moves the mean alone; one value for each channel has no variance."""
    y = ops.cast(rng.normal(2, 3, shape), dtype)
    upstream = ops.cast(rng.normal(size=shape), dtype)
    bias = rng.normal(size=shape[-1]).astype("float32")
    expected = formulas(norm(shape[-1]), ops.cast(y, "float32"), upstream, bias)
    node = norm(shape[-1])
    found = tf.function(run, autograph=False)(node, y, upstream, tf.constant(bias))
    assert "FusedBatchNormV3" in operators(run, node, y, upstream)
    assert found[0].dtype == found[1].dtype == dtype
    half = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}[dtype]
    for n, (one, other) in enumerate(zip(found, expected, strict=True)):
        tolerance = half if n < 2 else 1e-5  # features alone are in half precision
        one = np.asarray(ops.cast(one, "float32"))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_xla_gets_operators_whose_variance_is_never_negative(options, rng):
    """XLA's own is `E[y^2] - E[y]^2`, here below zero, and the deviation not a number."""
    y = rng.normal(100, 0.01, (8, 8, 8, 2)).astype("float32")
    node = norm(2, synchronized=False)
    found = tf.function(run, autograph=False, **options)(node, y, tf.ones(y.shape))
    expected = formulas(norm(2), y, np.ones(y.shape), np.zeros(2))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-2)  # a mean's last bit
    np.testing.assert_allclose(found[-1], expected[-1], rtol=1e-5)


def test_what_the_operator_cannot_do_is_done_as_before(two_replicas, float64):
    """float64, replicas that share moments, frozen statistics, a gamma that waits for them."""
    call, y = (lambda node, y: node.normalize(y, True)), tf.zeros((2, 3, 3, 4))
    fused = "FusedBatchNormV3"
    assert fused not in operators(call, norm(4), tf.cast(y, "float64"))
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    node = norm(4)
    assert fused in operators(call, node, y)
    assert "Mul" in operators(call, norm(4, OABN), y)  # the moments alone are the operator's
    assert fused not in operators(lambda node, y: node.normalize(y, False), node, y)
    node.statistics.trainable = False
    assert fused not in operators(call, node, y)
    for synchronized in (True, False):
        with two_replicas.scope():
            node = norm(4, synchronized=synchronized)
        both = operators(lambda y, node=node: two_replicas.run(call, (node, y)), y)
        assert (fused in both) is not synchronized


def image_formulas(x, to_image, to_mean, to_variance):
    """Mean image, mean and variance, and the gradient of their weighted sum, in NumPy."""
    x = np.asarray(x, np.float64)
    image, mean, variance = x.mean(0), x.mean((0, 1, 2)), x.var((0, 1, 2))
    count = x.size / x.shape[-1]
    to_x = to_image / len(x) + (to_mean + 2 * to_variance * (x - mean)) / count
    return image, mean, variance, to_x


def in_graph(function, x, upstream):
    """What a function of features returns and its gradient, and the operators of both."""

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            found = function(x)
        return *found, tape.gradient(found, x, upstream)

    return tf.function(run, autograph=False)(x), operators(run, x)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (2, 1, 1, 16), (1, 1, 1, 5)])
def test_moments_and_their_gradients_are_the_formulas(dtype, shape, rng):
    """By the operator, and by autodiff where there is none (float64)."""
    x = ops.cast(rng.normal(2, 3, shape), dtype)
    upstream = [rng.normal(size=size) for size in (shape[1:], shape[-1:], shape[-1:])]
    expected = image_formulas(ops.cast(x, "float64"), *upstream)
    wide = "float64" if dtype == "float64" else "float32"
    given = [tf.constant(value, wide) for value in upstream]
    found, used = in_graph(image_moments, x, given)
    assert ("FusedBatchNormV3" in used) is (dtype != "float64")
    _, *without_image = image_formulas(ops.cast(x, "float64"), 0.0, *upstream[1:])
    pairs = [*zip(found, expected, strict=True)]
    pairs += zip(in_graph(feature_moments, x, given[1:])[0], without_image, strict=True)
    close = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
    for one, other in pairs:
        assert one.dtype in (wide, dtype)
        tolerance = close[one.dtype.name]
        one = np.asarray(ops.cast(one, "float64"))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_moments_of_features_far_from_zero_lose_nothing(rng):
    """`E[x^2] - E[x]^2` would have no digit left of these deviations."""
    x = rng.normal(1000, 0.1, (8, 9, 9, 2)).astype("float32")
    _, mean, variance = image_moments(tf.constant(x))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype("float64").var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("distance", [1, 3, 8])
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_every_kth_image_and_its_gradient(distance, jit_compile, dtype, rng):
    x = tf.cast(rng.normal(size=(10, 2, 3, 4)), dtype)
    count = len(range(0, 10, distance))
    upstream = [tf.cast(rng.normal(size=(n, 2, 3, 4)), dtype) for n in (10, count)]

    @tf.function(input_signature=[tf.TensorSpec((None, 2, 3, 4), dtype)])
    def run(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            whole, images = with_every(x, distance)
        both = tape.gradient((whole, images), x, upstream)
        return whole, images, both, tape.gradient(images, x, upstream[1])

    if jit_compile:
        run = tf.function(run.python_function, jit_compile=True)
    whole, images, both, alone = run(x)
    expected = np.zeros(x.shape, x.dtype.as_numpy_dtype)
    expected[::distance] = array(upstream[1])
    np.testing.assert_array_equal(whole, array(x))
    np.testing.assert_array_equal(images, array(x)[::distance])
    np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(both, array(upstream[0]) + expected)
