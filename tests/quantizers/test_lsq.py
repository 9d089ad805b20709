"""LSQ against the formulas of arXiv 1902.08153, written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.quantizers import LSQ, levels, lsq
from repq_tf.quantizers.inside import inside
from repq_tf.quantizers.lsq import edge

ops = keras.ops
array = ops.convert_to_numpy


def paper(x, step, low, high, upstream, scale):
    """Forward, gradient to x, and gradient to the step times `scale`, per last axis of step.

    `v^ = round(clip(v / s, -Q_N, Q_P)) s`; `dv^/dv` is 1 inside the range;
    `dv^/ds` is `round(v/s) - v/s` inside, `-Q_N` below and `Q_P` above.
    """
    v = x / step
    forward = np.rint(np.clip(v, low, high)) * step
    inside = (v > low) & (v < high)
    to_step = np.where(inside, np.rint(v) - v, np.where(v <= low, low, high))
    axes = tuple(range(x.ndim - np.ndim(step)))
    return forward, upstream * inside, (upstream * to_step).sum(axes) * scale


def library(x, initial, change, low, high, upstream, scale):
    tensors = [tf.constant(v, "float64") for v in (x, initial, change)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y = lsq(*tensors, low, high, scale)
    to_x, to_initial, to_change = tape.gradient(y, tensors, tf.constant(upstream))
    assert to_initial is None or not np.any(array(to_initial))
    return array(y), array(to_x), array(to_change)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    narrow=st.booleans(),
    channels=st.sampled_from((None, 3)),
    shape=st.sampled_from(((7,), (4, 5), (2, 3, 4))),
    scale=st.sampled_from((1.0, 0.37)),
    seed=st.integers(0, 9999),
)
def test_forward_and_gradients_are_the_papers(
    bits, signed, narrow, channels, shape, scale, seed
):
    """The trained change receives `g dL/ds / (ds / dchange)`: s moves as LSQ would."""
    rng = np.random.default_rng(seed)
    low, high = levels(bits, signed, narrow)
    shape = shape if channels is None else (*shape, channels)
    initial = rng.uniform(0.1, 1.0, () if channels is None else (channels,))
    change = rng.normal(0, 0.5, initial.shape)
    step = initial * np.where(change < 0, np.exp(change), 1 + change)
    x = rng.uniform(1.4 * low - 1, 1.4 * high + 1, shape) * step
    upstream = rng.normal(size=shape)
    y, to_x, to_change = library(x, initial, change, low, high, upstream, scale)
    expected, expected_to_x, expected_to_step = paper(x, step, low, high, upstream, scale)
    np.testing.assert_allclose(y, expected, rtol=1e-14, atol=0)
    np.testing.assert_array_equal(to_x, expected_to_x)
    assert to_change.shape == initial.shape
    slope = initial * np.where(change < 0, np.exp(change), 1)
    np.testing.assert_allclose(to_change, expected_to_step / slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("signed", "narrow"), [(False, False), (True, False), (True, True)])
def test_values_on_the_bounds_and_between_levels(bits, signed, narrow):
    """On a bound the gradient to x is 0 and the step's is the level; ties are even."""
    low, high = levels(bits, signed, narrow)
    step = 0.25  # exact in binary, so that v is exactly on the bounds
    v = np.array([low - 0.5, low, low + 0.5, 0.5, 1.5, high - 0.5, high, high + 0.5])
    upstream = np.linspace(1, 2, len(v))
    for n in range(len(v)):  # one by one: sums would hide which value is wrong
        one, up = v[n : n + 1] * step, upstream[n : n + 1]
        y, to_x, to_change = library(one, step, 0.0, low, high, up, 1.0)
        expected, expected_to_x, expected_to_step = paper(one, step, low, high, up, 1.0)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(to_x, expected_to_x)
        np.testing.assert_array_equal(to_change, expected_to_step / step)
    assert library(np.array([high * step]), step, 0.0, low, high, np.ones(1), 1.0)[1] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("level", [1, 3, 127, 255, 2**15 - 1, -1, -8, -128])
def test_an_edge_is_where_the_quotient_reaches_the_level(dtype, level, rng):
    """To the last bit, whatever the rounding of `level * step` and of `value / step`."""
    step = np.exp(rng.uniform(-12, 3, 5000)).astype(dtype)
    found = array(edge(level, tf.constant(step)))
    assert found.dtype == dtype
    assert (np.abs(found / step) >= abs(level)).all()
    assert (np.abs(np.nextafter(found, found.dtype.type(0)) / step) < abs(level)).all()


@pytest.mark.parametrize("low", [0, -128])
def test_float32_values_around_the_bounds_are_inside_where_their_quotient_is(low, rng):
    """Those on the grid itself, whose bounds are rounded products, and all next to them."""
    low, high = (low, low + 255)
    for step in np.exp(rng.uniform(-6, 0, 20)).astype("float32"):
        x = np.repeat(np.float32([low, high, 0, 1]) * step, 7).reshape(4, 7)
        for n in range(1, 4):
            x[:, 3 - n] = np.nextafter(x[:, 4 - n], np.float32(-np.inf))
            x[:, 3 + n] = np.nextafter(x[:, 2 + n], np.float32(np.inf))
        x = np.append(x[np.abs(x) > 1e-30], np.float32([0, -np.inf, np.inf]))
        tensors = [tf.constant(v) for v in (x, step, np.float32(0))]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            y = lsq(*tensors, low, high, 1.0)
        to_x, _, to_change = tape.gradient(y, tensors, tf.ones(x.shape))
        v = x / step
        inside = (v > low) & (v < high)
        np.testing.assert_array_equal(array(to_x), inside)
        errors = np.rint(np.clip(v, low, high)) - np.where(inside, v, 0)
        np.testing.assert_allclose(array(to_change), errors.sum() / step, rtol=1e-5)


def test_weights_are_narrow_at_8_bits():
    assert (LSQ(bits=8).low, LSQ(bits=4).low, LSQ(bits=8, narrow=False).low) == (-127, -8, -128)


def quantizer(step, **options):
    layer = LSQ(**options)
    layer.build(None)
    layer.set_step(step)
    return layer


@pytest.mark.parametrize(
    ("options", "shape", "count"),
    [
        ({}, (3, 3, 4, 5), 180),
        ({"channels": 5}, (3, 3, 4, 5), 36),
        ({"per_image": True, "signed": False}, (6, 4, 4, 5), 80),
        ({"per_image": True, "signed": False}, (6, 10), 10),
    ],
)
def test_the_gradient_scale_is_that_of_what_shares_a_step(options, shape, count, rng):
    """g = 1 / sqrt(N Q_P); N leaves the batch out, so it does not depend on its size."""
    layer = quantizer(0.1, bits=4, bounded=False, **options)
    x, upstream = rng.normal(size=(2, *shape)).astype("float32")
    with tf.GradientTape() as tape:
        y = layer(ops.convert_to_tensor(x))
    actual = array(tape.gradient(y, layer.change.value, ops.convert_to_tensor(upstream)))
    step = np.full(layer.change.shape, 0.1, "float32")
    scale = 1 / np.sqrt(count * layer.high)
    _, _, expected = paper(x, step, layer.low, layer.high, upstream, scale)
    np.testing.assert_allclose(actual, expected / step, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("change", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("step", [0.004, 0.4])
def test_weights_limit_the_gradient_scale(step, change, rng):
    """g is at most `s / (rms(e) ||x||)`: small steps are limited, LSQ's own are not."""
    shape, channels = (3, 3, 8, 5), 5
    layer = quantizer(step, bits=8, channels=channels)
    layer.change.assign(np.full(channels, change))
    slope = step * min(np.exp(change), 1)
    step = step * (np.exp(change) if change < 0 else 1 + change)
    x, upstream = rng.normal(size=(2, *shape)).astype("float32")
    with tf.GradientTape() as tape:
        y = layer(ops.convert_to_tensor(x))
    actual = array(tape.gradient(y, layer.change.value, ops.convert_to_tensor(upstream)))
    v = x.astype("float64") / step
    error = np.where(np.abs(v) < 127, np.rint(v) - v, np.sign(v) * 127)
    limit = step / (np.sqrt((error**2).mean((0, 1, 2))) * np.sqrt((x**2).sum((0, 1, 2))))
    literal = 1 / np.sqrt(72 * 127)
    assert np.all(limit < literal) if step < 0.01 else np.all(limit > literal)
    expected = (upstream * error).sum((0, 1, 2)) * np.minimum(literal, limit) / slope
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_an_unknown_batch_or_size_has_the_same_gradient_scale(rng):
    x = rng.normal(size=(4, 5, 6, 3)).astype("float32")

    def gradient(signature, **options):
        layer = quantizer(0.1, bits=4, per_image=True, signed=False, **options)

        @tf.function(input_signature=[tf.TensorSpec(signature, "float32")])
        def run(x):
            with tf.GradientTape() as tape:
                y = ops.sum(layer(x))
            return tape.gradient(y, layer.change.value)

        return array(run(x))

    known = gradient((4, 5, 6, 3))
    np.testing.assert_allclose(gradient((None, 5, 6, 3)), known, rtol=1e-6)
    np.testing.assert_allclose(gradient((None, None, None, 3)), known, rtol=1e-6)
    known = gradient((4, 5, 6, 3), channels=3)
    np.testing.assert_allclose(gradient((None, None, None, 3), channels=3), known, rtol=1e-6)


def test_a_number_can_replace_the_gradient_scale(rng):
    x = rng.normal(size=(8,)).astype("float32")
    values = []
    for scale in (1.0, 0.25):
        layer = quantizer(0.1, bits=4, gradient_scale=scale)
        with tf.GradientTape() as tape:
            y = ops.sum(layer(ops.convert_to_tensor(x)))
        values.append(array(tape.gradient(y, layer.change.value)))
    np.testing.assert_allclose(values[1], values[0] / 4, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_is_quantized_in_float32(dtype, rng):
    keras.config.set_dtype_policy(f"mixed_{dtype}" if dtype != "float32" else dtype)
    try:
        layer = quantizer(0.013, bits=8)
    finally:
        keras.config.set_dtype_policy("float32")
    assert keras.backend.standardize_dtype(layer.change.dtype) == "float32"
    assert keras.backend.standardize_dtype(layer.initial_step.dtype) == "float32"
    x = ops.cast(rng.normal(size=(4, 300)), dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = ops.sum(ops.cast(y, "float32") ** 2)
    to_x, to_change = tape.gradient(loss, [x, layer.change.value])
    assert y.dtype == to_x.dtype == x.dtype and to_change.dtype == "float32"
    wide = array(ops.cast(x, "float32"))
    expected = np.rint(np.clip(wide / np.float32(0.013), -127, 127)) * np.float32(0.013)
    np.testing.assert_array_equal(array(y), array(ops.cast(expected, dtype)))
    np.testing.assert_array_equal(array(layer.integers(wide)) * np.float32(0.013), expected)
    assert np.isfinite(array(to_change)).all() and np.any(array(to_change))


def test_eager_and_compiled_agree(rng):
    """Outside any graph too: calibration and debugging run eagerly."""
    layer = quantizer([0.1, 0.2, 0.3], bits=3, channels=3)
    x = ops.convert_to_tensor(rng.normal(size=(5, 3)).astype("float32"))

    def run(x):
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = ops.sum(y * y)
        return y, tape.gradient(loss, layer.change.value)

    eager = run(x)
    for compiled in (tf.function(run), tf.function(run, jit_compile=True)):
        for one, other in zip(compiled(x), eager, strict=True):
            np.testing.assert_allclose(array(one), array(other), rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("rate", [0.1, 1e2, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_step_stays_positive_and_finite_after_any_update(optimizer, rate, sign, rng):
    layer = quantizer([1e-3, 0.1, 10.0], bits=4, channels=3)
    x = ops.convert_to_tensor(rng.normal(size=(50, 3)).astype("float32"))
    optimizer = getattr(keras.optimizers, optimizer)(rate)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = sign * ops.sum(layer(x) ** 2)
        gradient = tape.gradient(loss, layer.change.value)
        optimizer.apply([gradient], [layer.change])
        step = array(layer.step)
        assert np.isfinite(step).all() and (step > 0).all(), step
        assert np.isfinite(array(layer(x))).all()


def test_a_step_keeps_a_64th_of_its_initial_value():
    layer = quantizer(0.02, bits=8)
    for change, part in ((-4.0, np.exp(-4)), (-5.0, 1 / 64), (-1e9, 1 / 64), (3.0, 4.0)):
        layer.change.assign(change)
        assert float(layer.step) == pytest.approx(0.02 * part, rel=1e-6)


def test_weight_decay_pulls_to_the_initial_step_not_to_zero():
    layer = quantizer(0.02, bits=4)
    layer.change.assign(0.5)
    keras.optimizers.SGD(0.1, weight_decay=1.0).apply([0.0], [layer.change])
    assert 0.02 < float(layer.step) < 0.02 * np.exp(0.5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_kernel_of_zeros_has_the_step_of_usual_weights(shared):
    layer = LSQ(bits=4, channels=None if shared else 5)
    layer.build(None)
    layer.initialize(np.zeros((3, 3, 4, 5), "float32"))
    np.testing.assert_allclose(array(layer.step), 1 / (6 * 7), rtol=1e-6)


def test_set_step_and_clip_rate():
    layer = quantizer([1.0, 2.0], bits=2, channels=2)
    np.testing.assert_array_equal(array(layer.step), [1, 2])
    x = np.array([[-2.4, -4.0], [-2.6, 3.1], [1.6, 1.0], [0.0, 0.0]], "float32")
    assert float(layer.clip_rate(x)) == pytest.approx(3 / 8)  # -2.6, 1.6 and 3.1 / 2


def test_configuration_round_trip():
    layer = LSQ(
        bits=3, signed=False, narrow=False, channels=4, gradient_scale=0.5, per_image=True
    )
    twin = LSQ.from_config(layer.get_config())
    names = "bits signed narrow channels gradient_scale per_image low high".split()
    assert [getattr(layer, n) for n in names] == [getattr(twin, n) for n in names]


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 2.5, True, "eight", None])
def test_bits_outside_2_to_8_and_16_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be .* from 2 to 8, or 16. Received: "):
        LSQ(bits=bits)


@pytest.mark.parametrize("step", [0.0, -0.1, float("nan"), [0.1, 0.0, 0.2]])
def test_a_step_must_be_positive(step):
    layer = LSQ(channels=3)
    layer.build(None)
    with pytest.raises(ValueError, match="step must be positive"):
        layer.set_step(step)


def test_unknown_initialisation():
    layer = quantizer(0.1)
    with pytest.raises(ValueError, match="method must be one of .*min_error.*'best'"):
        layer.initialize(np.ones(3, "float32"), "best")


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
def test_what_is_inside_is_so_in_few_passes_and_in_many(channels, jit_compile, rng):
    """One bound for all values goes through TensorFlow's own operator, but not under XLA."""
    x = rng.normal(size=(50, 3)).astype("float32")
    upstream = rng.normal(size=x.shape).astype("float32")
    low, high = (np.float32(bound) * np.ones(channels or (), "float32") for bound in (-0.5, 1))
    x[:4] = [low * np.ones(3), high * np.ones(3), [0, np.inf, -np.inf], [np.nan, 0, 1e-37]]
    tensors = [tf.constant(value) for value in (x, low, high, upstream)]
    run = tf.function(inside, jit_compile=jit_compile, autograph=False)
    to_x, x_inside = run(*tensors)
    found = (x > low) & (x < high)
    np.testing.assert_array_equal(to_x, np.where(found, upstream, 0))
    finite = np.isfinite(x)
    np.testing.assert_array_equal(array(x_inside)[finite], np.where(found, x, 0)[finite])
    assert not array(x_inside)[np.isinf(x)].any()
    if not jit_compile:
        graph = run.get_concrete_function(*tensors).graph
        used = {op.type for op in graph.get_operations()}
        assert ("QuantizeAndDequantizeV4Grad" in used) is (channels is None)
