"""What TensorFlow does badly: 1x1 convolutions with strides, and the gradients of slices."""

import numpy as np
import pytest
import tensorflow as tf

from repq_tf.windows import apply_window, convolve, subsample
from tests import forks
from tests.reference import crop

PROGRAM = """
import numpy as np
import tensorflow as tf

from repq_tf.layers import RepVGGBlock

x = tf.constant(np.random.default_rng(0).normal(size=(16, 48, 48, 8)), "float32")
for options in ({}, {"merged": True}, {"weight_bits": 8}):
    block = RepVGGBlock(16, strides=2, padding=1, bn_statistics="batch", **options)
    block(x)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(block(x, training=True) ** 2)
        return tape.gradient(loss, block.trainable_variables)

    for _ in range(10):  # memory that is corrupt is noticed when it is used again
        assert all(np.isfinite(g).all() for g in gradients())
"""


@pytest.mark.slow
def test_a_1x1_convolution_of_few_channels_with_strides_trains():
    """In a process of its own, which a wrong address would end."""
    status, _, errors = forks.run(PROGRAM)
    assert status == 0, errors[-2000:]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("strides", [(2, 2), (1, 3)])
def test_subsampling_is_exact(rng, dtype, strides):
    x = tf.cast(rng.normal(size=(2, 7, 6, 3)), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = subsample(x, strides)
        loss = tf.reduce_sum(y * y)
    kept = np.zeros(x.shape)
    kept[:, :: strides[0], :: strides[1]] = 1
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x[:, :: strides[0], :: strides[1]])
    np.testing.assert_array_equal(tape.gradient(loss, x), 2 * np.asarray(x) * kept)


def test_subsampling_keeps_what_is_not_finite():
    x = np.array([np.nan, 1, np.inf, 2, -np.inf], "float32").reshape(1, 1, 5, 1)
    found = np.ravel(subsample(tf.constant(x), (1, 2)))
    np.testing.assert_array_equal(found, [np.nan, np.inf, -np.inf])


WINDOWS = [((-1, 0), (0, -2)), ((-2, 1), (2, -1)), ((1, 1), (0, 0))]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_crops_and_pads_what_it_says(rng, dtype, window):
    """Of features of unknown size too; the gradient reaches the pixels that are left."""
    x = tf.cast(rng.normal(size=(2, 7, 6, 3)), dtype)
    kept = np.zeros(x.shape)
    sides = zip((7, 6), window, strict=True)
    rows, columns = (slice(max(-a, 0), n - max(-b, 0)) for n, (a, b) in sides)
    kept[:, rows, columns] = 1

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = apply_window(x, window)
            loss = tf.reduce_sum(y * y)
        return y, tape.gradient(loss, x)

    for shape in (x.shape, (None, None, None, 3)):
        y, gradient = tf.function(run, input_signature=[tf.TensorSpec(shape, dtype)])(x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, crop(np.asarray(x), window))
        np.testing.assert_array_equal(gradient, 2 * np.asarray(x) * kept)


@pytest.mark.parametrize("size", [(1, 3), (3, 1), (1, 1)])
def test_a_cropped_convolution_has_no_slow_gradient(size):
    """The small branches of a 3x3 block with stride 2 leave out the first row or column."""
    window = tuple((-1, 0) if n == 1 else (0, 1) for n in size)

    @tf.function
    def gradient(x, kernel):
        return tf.gradients(convolve(x, kernel, 1, (2, 2), window), [x, kernel])

    graph = gradient.get_concrete_function(
        tf.zeros((1, 8, 8, 3)), tf.zeros((*size, 3, 4))
    ).graph
    assert not {"StridedSliceGrad", "PadV2"} & {op.type for op in graph.get_operations()}
