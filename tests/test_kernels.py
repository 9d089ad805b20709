"""The algebra: random expressions against running them, in float64 NumPy and SciPy."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.kernels import AffineKernel, centre_offset
from repq_tf.windows import convolve, crop_window, same_window
from tests.reference import convolution, crop

ops = keras.ops
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4))
GROUPS = (1, 2, 3, 4, 6, 12)


def make(seed, size, in_channels, out_channels, groups=1, dtype="float64"):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(*size, in_channels // groups, out_channels))
    return AffineKernel(
        kernel.astype(dtype), rng.normal(size=out_channels).astype(dtype), groups
    )


def run(affine, x):
    return convolution(x, affine.kernel, affine.bias, affine.groups)


def close(actual, expected, tolerance=1e-12):
    scale = max(np.abs(expected).max(initial=0.0), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


# Expressions: a tree is drawn together with how to run it, which knows nothing of merging.


@st.composite
def leaves(draw, in_channels, out_channels=None):
    """A convolution or an identity, as `(AffineKernel, run)`."""
    if out_channels in (None, in_channels) and draw(st.integers(0, 4)) == 0:
        return AffineKernel.identity(in_channels, "float64"), lambda x: x
    out_channels = out_channels or draw(st.sampled_from((1, 2, 4, 6, 12)))
    groups = draw(
        st.sampled_from([g for g in GROUPS if in_channels % g == out_channels % g == 0])
    )
    affine = make(draw(st.integers(0, 999)), draw(SIZES), in_channels, out_channels, groups)
    return affine, lambda x: run(affine, x)


@st.composite
def trees(draw, in_channels, out_channels=None, depth=3):
    """A random expression over `+`, `then`, `scale`, `embed` and `regroup`."""
    kinds = ["leaf"] + ["add", "then", "scale", "embed", "regroup"] * (depth > 0)
    kind = draw(st.sampled_from(kinds))
    if kind == "leaf":
        return draw(leaves(in_channels, out_channels))
    if kind == "then":
        first, run_first = draw(trees(in_channels, None, depth - 1))
        middle = first.out_channels
        second, run_second = draw(trees(middle, out_channels, depth - 1))
        return first.then(second), lambda x: run_second(run_first(x))
    child, run_child = draw(trees(in_channels, out_channels, depth - 1))
    if kind == "add":
        other, run_other = draw(trees(in_channels, child.out_channels, depth - 1))
        size = tuple(map(max, child.size, other.size))

        def run_sum(x):
            return sum(
                r(crop(x, crop_window(((0, 0), (0, 0)), size, a.size)))
                for a, r in ((child, run_child), (other, run_other))
            )

        return child + other, run_sum
    if kind == "scale":
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        gain, shift = rng.normal(size=(2, child.out_channels))
        if draw(st.booleans()):
            return child.scale(gain), lambda x: run_child(x) * gain
        return child.scale(gain, shift), lambda x: run_child(x) * gain + shift
    if kind == "embed":
        size = tuple(n + draw(st.integers(0, 2)) for n in child.size)
        outer = crop_window(((0, 0), (0, 0)), size, child.size)
        return child.embed(size), lambda x: run_child(crop(x, outer))
    divisors = [g for g in range(1, child.groups + 1) if child.groups % g == 0]
    return child.regroup(draw(st.sampled_from(divisors))), run_child


@pytest.mark.slow
@settings(max_examples=300)
@given(data=st.data(), in_channels=st.sampled_from((1, 2, 4, 6, 12)))
def test_an_expression_merges_into_what_running_it_gives(data, in_channels):
    affine, run_tree = data.draw(trees(in_channels))
    seed = data.draw(st.integers(0, 999))
    shape = (2, affine.size[0] + 2, affine.size[1] + 1, in_channels)
    x = np.random.default_rng(seed).normal(size=shape)
    assert affine.in_channels == in_channels
    assert affine.kernel.shape == (*affine.size, in_channels // affine.groups, len(affine.bias))
    close(run(affine, x), run_tree(x))


@settings(max_examples=60)
@given(data=st.data(), sizes=st.tuples(SIZES, SIZES), seed=st.integers(0, 999))
def test_then_for_every_pair_of_groupings(data, sizes, seed):
    first, second = (data.draw(st.sampled_from(GROUPS)) for _ in range(2))
    channels = [data.draw(st.sampled_from((12, 24))) for _ in range(3)]
    a = make(seed, sizes[0], channels[0], channels[1], first)
    b = make(seed + 1, sizes[1], channels[1], channels[2], second)
    merged = a.then(b)
    assert merged.groups == math.gcd(first, second)
    assert merged.size == tuple(m + n - 1 for m, n in zip(*sizes, strict=True))
    x = np.random.default_rng(seed).normal(
        size=(1, merged.size[0], merged.size[1] + 1, channels[0])
    )
    close(run(merged, x), run(b, run(a, x)))


@given(data=st.data(), sizes=st.tuples(SIZES, SIZES), seed=st.integers(0, 999))
def test_the_algebra_obeys_its_laws(data, sizes, seed):
    groups = [data.draw(st.sampled_from((1, 2, 3, 6))) for _ in range(3)]
    a, b, c = (make(seed + n, sizes[n % 2], 6, 6, groups[n]) for n in range(3))
    identity = AffineKernel.identity(6, "float64")

    def same(left, right):
        left, right = left.regroup(1), right.regroup(1)
        close(left.kernel, right.kernel)
        close(left.bias, right.bias)

    same(a + b, b + a)
    same((a + b) + c, a + (b + c))
    same(a.then(b).then(c), a.then(b.then(c)))
    same(identity.then(a), a)
    same(a.then(identity), a)
    if a.size == b.size:
        same((a + b).then(c), a.then(c) + b.then(AffineKernel(c.kernel, 0 * c.bias, c.groups)))
    same(a.then(c.scale(2 * np.ones(6))), a.then(c).scale(2 * np.ones(6)))
    x, gain = np.random.default_rng(seed).normal(size=(1, 4, 4, 6)), np.arange(1.0, 7.0)
    close(run(a.scale_inputs(gain), x), run(a, x * gain))


def test_response_is_the_output_to_constant_channels(rng):
    for groups in (1, 2, 4):
        affine = make(groups, (3, 2), 8, 4, groups)
        constant = rng.normal(size=8)
        y = run(affine, np.broadcast_to(constant, (1, 3, 2, 8)))[0, 0, 0]
        close(affine.response(constant) + affine.bias, y)


@given(outer=st.integers(1, 9), inner=st.integers(1, 9))
def test_the_centre_is_that_of_same_padding(outer, inner):
    """A small kernel with its own "same" padding reads what it reads inside a large one."""
    inner, outer = sorted((inner, outer))
    small = same_window((inner, 1), (1, 1), (20, 1))[0]
    large = same_window((outer, 1), (1, 1), (20, 1))[0]
    offset = centre_offset(outer, inner)
    assert large[0] - offset == small[0]
    assert large[1] - (outer - inner - offset) == small[1]


@settings(max_examples=40)
@given(
    size=SIZES,
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    spatial=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_same_window_is_keras_same(size, strides, spatial):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, *spatial, 2)), rng.normal(size=(*size, 2, 3))
    window = same_window(size, strides, spatial)
    expected = ops.conv(x, kernel, strides=strides, padding="same")
    close(convolution(x, kernel, None, 1, strides, window), np.asarray(expected))


# A window's sides may be negative: pixels are cut off.
SIDES = st.integers(-1, 2)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from((1, 2, 4)),
    multiplier=st.sampled_from((1, 2)),
    strides=st.sampled_from(((1, 1), (2, 2), (1, 2), (3, 1))),
    window=st.tuples(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES)),
)
def test_convolve_is_the_reference(size, groups, multiplier, strides, window):
    if groups == 4 and len(set(strides)) > 1:
        strides = (2, 2)  # TensorFlow's float64 depthwise convolution wants equal ones.
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 7, 4))
    kernel = rng.normal(size=(*size, 4 // groups, 4 * multiplier))
    y = convolve(
        ops.convert_to_tensor(x), ops.convert_to_tensor(kernel), groups, strides, window
    )
    close(np.asarray(y), convolution(crop(x, window), kernel, None, groups, strides))


# Types and gradients.


def expression(a, b, c, gain):
    """Uses every operation: dense, grouped and depthwise kernels of odd and even sizes."""
    total = a.then(b) + c.embed((3, 3)).scale(gain, 2 * gain)
    return total.then(AffineKernel(b.kernel[:1, :1], b.bias, b.groups)).regroup(1)


def ingredients(dtype):
    return (
        make(0, (1, 1), 4, 4, 1, dtype),
        make(1, (3, 2), 4, 4, 2, dtype),
        make(2, (1, 3), 4, 4, 4, dtype),
        np.linspace(-1, 1, 4).astype(dtype),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_stay_arrays_and_tensors_tensors_of_one_dtype(dtype):
    a, b, c, gain = ingredients(dtype)
    arrays = expression(a, b, c, gain) + AffineKernel.identity(4, dtype)
    assert isinstance(arrays.kernel, np.ndarray) and isinstance(arrays.bias, np.ndarray)
    assert arrays.kernel.dtype == arrays.bias.dtype == dtype

    def tensors(affine):
        kernel, bias = map(ops.convert_to_tensor, (affine.kernel, affine.bias))
        return AffineKernel(kernel, bias, affine.groups)

    merged = expression(tensors(a), tensors(b), tensors(c), ops.convert_to_tensor(gain))
    merged = merged + AffineKernel.identity(4, dtype)
    assert ops.is_tensor(merged.kernel) and ops.is_tensor(merged.bias)
    assert keras.backend.standardize_dtype(merged.kernel.dtype) == dtype
    assert keras.backend.standardize_dtype(merged.bias.dtype) == dtype
    close(np.asarray(merged.kernel), arrays.kernel, 1e-5 if dtype == "float32" else 1e-12)
    close(np.asarray(merged.bias), arrays.bias, 1e-5 if dtype == "float32" else 1e-12)


def test_gradients_of_a_merged_expression_are_finite_differences(rng):
    import tensorflow as tf

    a, b, c, gain = ingredients("float64")
    variables = [a.kernel, a.bias, b.kernel, b.bias, c.kernel, c.bias, gain]

    def loss(variables):
        first, second, third = (
            AffineKernel(*variables[2 * n : 2 * n + 2], groups)
            for n, groups in enumerate((1, 2, 4))
        )
        merged = expression(first, second, third, variables[6])
        return ops.sum(ops.sin(merged.kernel)) + ops.sum(merged.bias * merged.bias)

    tensors = [tf.constant(v) for v in variables]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(tensors)
    gradients = tape.gradient(value, tensors)
    for n, gradient in enumerate(gradients):
        direction = rng.normal(size=variables[n].shape)
        sides = []
        for sign in (1, -1):
            moved = list(variables)
            moved[n] = variables[n] + sign * 1e-6 * direction
            sides.append(float(loss(moved)))
        expected = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    dense, narrow = make(0, (3, 3), 4, 4), make(0, (3, 3), 4, 2)
    with pytest.raises(ValueError, match=r"equal channels.*4 -> 4 and 4 -> 2"):
        dense + narrow
    with pytest.raises(ValueError, match=r"2 output channels.*4 input channels"):
        narrow.then(dense)
    with pytest.raises(ValueError, match=r"size must be at least \(3, 3\).*\(3, 1\)"):
        dense.embed((3, 1))
    with pytest.raises(ValueError, match=r"groups must divide 1.*groups=2"):
        dense.regroup(2)
    with pytest.raises(ValueError, match="known input size"):
        same_window((3, 3), (2, 2), (None, 8))
