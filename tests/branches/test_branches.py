"""The two readings of a branch are one: run branch by branch, and merged."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.branches import (
    BatchNorm,
    Chain,
    Convolution,
    FeatureReading,
    Identity,
    NumpyReading,
    Reading,
    Sum,
)
from repq_tf.windows import convolve
from tests.branches.expressions import builders, features, randomize, windows
from tests.reference import convolution

ops = keras.ops
STRIDES = st.sampled_from(((1, 1), (2, 2), (1, 2)))
# TensorFlow's float64 depthwise convolutions, gradients included, want equal strides.
EQUAL_STRIDES = st.sampled_from(((1, 1), (2, 2)))
CHANNELS = st.sampled_from((2, 4))


array = ops.convert_to_numpy


def arrays(variables):
    return [array(v).copy() for v in variables]


def close(actual, expected, tolerance):
    actual, expected = array(actual), array(expected)
    scale = np.abs(expected).max() + 1e-30
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=tolerance)


def built(builder, channels, dtype, seed, **options):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    branch = builder()
    branch.build((None, None, None, channels))
    randomize(branch, seed, **options)
    return branch


@pytest.fixture(autouse=True)
def _float32_again():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@settings(max_examples=100)
@given(
    data=st.data(),
    channels=st.tuples(CHANNELS, CHANNELS),
    strides=STRIDES,
    make_window=windows(),
    extra=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    seed=st.integers(0, 999),
)
def test_running_equals_merging(
    dtype, tolerance, data, channels, strides, make_window, extra, seed
):
    branch = built(data.draw(builders(*channels)), channels[0], dtype, seed)
    x = features(seed, branch, channels[0], extra=extra)
    window = make_window(branch.kernel_size, strides, x.shape[1:3])
    y = branch(x, window=window, strides=strides)
    assert keras.backend.standardize_dtype(y.dtype) == dtype

    exact = branch.merge(NumpyReading())
    assert exact.size == branch.kernel_size and exact.kernel.dtype == np.float64
    assert exact.out_channels == branch.output_channels(channels[0]) == channels[1]
    expected = convolution(x, exact.kernel, exact.bias, exact.groups, strides, window)
    close(y, expected, tolerance)

    merged = branch.merge()
    assert keras.backend.standardize_dtype(merged.kernel.dtype) == dtype
    close(merged.kernel, exact.kernel, tolerance)
    close(merged.bias, exact.bias, tolerance)


@settings(max_examples=12)
@given(
    data=st.data(),
    strides=EQUAL_STRIDES,
    make_window=windows(),
    seed=st.integers(0, 999),
)
def test_running_equals_merging_with_groups(data, strides, make_window, seed):
    branch = built(data.draw(builders(4, 4, groups=(1, 2, 4, 4))), 4, "float64", seed)
    x = features(seed, branch, 4)
    window = make_window(branch.kernel_size, strides, x.shape[1:3])
    y = branch(x, window=window, strides=strides)
    exact = branch.merge(NumpyReading())
    expected = convolution(x, exact.kernel, exact.bias, exact.groups, strides, window)
    close(y, expected, 1e-12)


def gradients(branch, forward):
    """Output, gradients of a random linear loss, and moving statistics."""
    with tf.GradientTape() as tape:
        y = forward()
        weights = np.random.default_rng(0).normal(size=y.shape)
        loss = ops.sum(y * weights)
    variables = branch.trainable_variables
    values = tape.gradient(loss, [v.value for v in variables])
    return y, [array(g) for g in values], arrays(branch.non_trainable_variables)


@pytest.mark.slow
@settings(max_examples=80)
@given(
    data=st.data(),
    channels=st.tuples(CHANNELS, CHANNELS),
    strides=EQUAL_STRIDES,
    make_window=windows(),
    seed=st.integers(0, 999),
)
def test_training_on_the_merged_kernel_is_training_the_branches(
    data, channels, strides, make_window, seed
):
    """RepQ-BN, Algorithm 1, without a quantizer: outputs, gradients and moving statistics."""
    builder = data.draw(builders(*channels))
    branch = built(builder, channels[0], "float64", seed)
    for node in branch.walk():
        if isinstance(node, BatchNorm):
            node.statistics.mode = "batch"
    x = features(seed, branch, channels[0], batch=3)
    window = make_window(branch.kernel_size, strides, x.shape[1:3])
    before = arrays(branch.non_trainable_variables)

    def run():
        return branch(x, window=window, strides=strides, training=True)

    def merged():
        affine = branch.merge(FeatureReading(x, window, strides))
        return convolve(x, affine.kernel, affine.groups, strides, window) + affine.bias

    y, expected, moving = gradients(branch, run)
    for variable, value in zip(branch.non_trainable_variables, before, strict=True):
        variable.assign(value)
    y_merged, actual, moving_merged = gradients(branch, merged)

    close(y_merged, y, 1e-9)
    largest = max((np.abs(g).max() for g in expected), default=1.0)
    for variable, one, other in zip(branch.trainable_variables, actual, expected, strict=True):
        np.testing.assert_allclose(
            one / largest, other / largest, rtol=0, atol=1e-8, err_msg=variable.path
        )
    for one, other, start in zip(moving_merged, moving, before, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
        assert not np.array_equal(one, start)


def test_a_chain_pads_between_its_links_with_the_bias(float64):
    """The intermediate of 1x1 -> 3x3 is the bias outside the image, not zero."""
    chain = Chain([Convolution(2, 1, use_bias=True), Convolution(3, 3)])
    chain.build((None, None, None, 2))
    randomize(chain, 0)
    first, last = chain.children
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 2))
    middle = convolution(x, first.kernel, first.bias)
    padded = np.broadcast_to(np.asarray(first.bias), (1, 6, 6, 2)).copy()
    padded[:, 1:5, 1:5] = middle
    expected = convolution(padded, last.kernel)
    close(chain(x, window=((1, 1), (1, 1))), expected, 1e-12)


def test_only_the_last_link_has_the_strides_and_moments_know(float64):
    """A batch norm inside a chain sees the features at stride 1, the last at stride 2."""
    chain = Chain([BatchNorm(Convolution(2, 1)), BatchNorm(Convolution(2, 3))])
    chain.build((None, None, None, 2))
    randomize(chain, 0)
    first, last = chain.children
    for link in chain.children:
        link.statistics.mode = "batch"
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 2))
    window = ((1, 1), (1, 1))
    merged = chain.merge(FeatureReading(ops.convert_to_tensor(x), window, (2, 2)))
    inner = convolution(x, first.child.kernel, window=window)  # 7x7, the zeros included
    assert inner.shape[1:3] == (7, 7)

    def normalized(y, batch_norm):
        mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        gain = np.asarray(batch_norm.gamma) / np.sqrt(variance + batch_norm.epsilon)
        return (y - mean) * gain + np.asarray(batch_norm.beta)

    y = convolution(normalized(inner, first), last.child.kernel, strides=(2, 2))
    expected = normalized(y, last)
    actual = convolution(x, merged.kernel, merged.bias, 1, (2, 2), window)
    close(actual, expected, 1e-12)


def test_a_batch_norm_deep_inside_nested_chains_sees_all_that_precedes_it(float64):
    """Its moments are those of every link before it, in the inner chain and the outer."""
    inner = Chain([Convolution(3, 2, use_bias=True), BatchNorm(Convolution(2, (1, 2)))])
    chain = Chain([Convolution(3, 3, use_bias=True), Sum([inner, Convolution(2, 1)])])
    chain.build((None, None, None, 2))
    randomize(chain, 0)
    deep = inner.children[1]
    deep.statistics.mode = "batch"
    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 7, 6, 2)))
    for strides in ((1, 1), (2, 2)):
        window = ((2, 1), (1, 2))
        start = arrays(deep.statistics.variables)
        y = chain(x, window=window, strides=strides, training=True)
        moved = arrays(deep.statistics.variables)
        for variable, value in zip(deep.statistics.variables, start, strict=True):
            variable.assign(value)
        merged = chain.merge(FeatureReading(x, window, strides))
        expected = convolution(x, merged.kernel, merged.bias, 1, strides, window)
        close(y, expected, 1e-12)
        for one, other in zip(deep.statistics.variables, moved, strict=True):
            np.testing.assert_allclose(array(one), other, rtol=1e-12)


def test_merging_leaves_moving_statistics_alone_in_inference():
    branch = BatchNorm(Convolution(3, 3))
    branch.build((None, None, None, 2))
    branch.statistics.mode = "batch"
    randomize(branch, 0)
    before = arrays(branch.variables)
    branch.merge(), branch.merge(Reading()), branch.merge(NumpyReading())
    branch(np.ones((1, 4, 4, 2), "float32"), training=False)
    for variable, value in zip(branch.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_features_keep_the_algebra_in_float32(dtype):
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    branch = Sum([BatchNorm(Convolution(4, 3)), BatchNorm(Identity())])
    branch.build((None, None, None, 4))
    x = ops.cast(np.random.default_rng(0).normal(size=(4, 6, 6, 4)), dtype)
    y = branch(x, window=((1, 1), (1, 1)), training=True)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    merged = branch.merge(FeatureReading(x, ((1, 1), (1, 1)), (1, 1)))
    for tensor in (merged.kernel, merged.bias, *branch.variables):
        assert keras.backend.standardize_dtype(tensor.dtype) == "float32"


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match="branches must be a list of branches, and not be empty"
    ):
        Sum([])
    with pytest.raises(
        ValueError, match="branches must be a list of branches, and not be empty"
    ):
        Chain([])
    unequal = Sum([Convolution(3, 1, name="three"), Convolution(4, 1, name="four")])
    with pytest.raises(ValueError, match="equal output channels.*'three': 3, 'four': 4"):
        unequal.build((None, None, None, 2))
    with pytest.raises(ValueError, match="groups must divide the 3 input.*groups=2"):
        Convolution(4, 3, groups=2).build((None, None, None, 3))
