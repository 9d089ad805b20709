"""Odd levels against NumPy in double precision, alone and with a wide tap, and in files."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers as blocks
from repq_tf.quantizers import LSQ, WideTapLSQ
from repq_tf.quantizers.wide_tap import identity_taps
from tests.deployment.files import assert_exact, parity

array = keras.ops.convert_to_numpy
SHAPE = (3, 3, 8, 8)
TAPS = identity_taps(SHAPE)


def normal(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(kind=LSQ, **options):
    quantizer = kind(**options)
    quantizer.build(None)
    return quantizer


def nearest(v, levels):
    """The nearest of some levels."""
    levels = np.asarray(levels, "f8")
    return levels[np.abs(np.asarray(v, "f8")[..., None] - levels).argmin(-1)]


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("channels", [8, None])
def test_levels_are_the_nearest_odd_numbers(bits, channels):
    values, quantizer = normal(), built(bits=bits, channels=channels, odd=True)
    quantizer.initialize(values)
    v = values.astype("f8") / array(quantizer.step)
    expected = nearest(v, np.arange(1 - 2**bits, 2**bits, 2))
    np.testing.assert_array_equal(array(quantizer.integers(values)), expected)
    step = array(quantizer.step)
    np.testing.assert_array_equal(array(quantizer(values)), (expected * step).astype("f4"))
    outside = (np.abs(v) > 2**bits).mean()
    assert array(quantizer.clip_rate(values)) == pytest.approx(outside, abs=1e-6)


def test_the_first_step_is_the_quantizer_of_least_error_for_normal_values():
    """Max's table (1960): 4 equal levels lie 0.9957 deviations apart, and lose 0.1188.

    Two bits of all integers lose more: three levels and one that hardly any value has.
    """
    values = normal((40000, 1))
    losses = []
    for odd in (True, False):
        quantizer = built(bits=2, channels=1, odd=odd)
        quantizer.initialize(values)
        error = array(quantizer(values)).astype("f8") - values
        losses.append(np.square(error).mean() / np.square(values).mean())
        if odd:
            assert 2 * float(array(quantizer.step)[0]) == pytest.approx(0.9957, rel=0.03)
    assert losses[0] == pytest.approx(0.1188, rel=0.02) and losses[1] > 0.14


def test_a_wide_tap_has_every_level():
    values = normal()
    values[TAPS] = 40.0
    quantizer = built(WideTapLSQ, bits=2, channels=8, odd=True)
    quantizer.initialize(values)
    v = values.astype("f8") / array(quantizer.step)
    expected = np.where(TAPS, np.rint(np.clip(v, -127, 127)), nearest(v, (-3, -1, 1, 3)))
    np.testing.assert_array_equal(array(quantizer.integers(values)), expected)
    error = np.square(array(quantizer(values)).astype("f8") - values).sum()
    assert error / np.square(values[~TAPS].astype("f8")).sum() < 0.16


def test_gradients_are_lsqs():
    """Of the step: the level beyond the outer ones, level minus value between them."""
    import tensorflow as tf

    values, upstream = normal(), normal(seed=1)
    quantizer = built(bits=2, channels=8, odd=True, bounded=False)
    quantizer.set_step(np.full(8, 0.25, np.float32))
    x = tf.Variable(values)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(x) * upstream)
    to_x, to_change = tape.gradient(total, [x, quantizer.change.value])
    v = values.astype("f8") / 0.25
    inside = np.abs(v) < 3
    np.testing.assert_allclose(to_x, upstream * inside)
    error = np.where(inside, nearest(v, (-3, -1, 1, 3)) - v, 3 * np.sign(v))
    # As fast, relative to itself, as LSQ's own step S = 2 s with Q_P = 1.5 would change.
    to_lsqs = (upstream * error / 2).sum((0, 1, 2)) / np.sqrt(values.size / 8 * 1.5) / 0.5
    np.testing.assert_allclose(to_change, to_lsqs, rtol=1e-4)


def test_a_channel_of_zeros_stays_one():
    values = normal()
    values[..., 3] = 0
    quantizer = built(bits=2, channels=8, odd=True)
    quantizer.initialize(values)
    found = array(quantizer(values))
    assert np.abs(found[..., 3]).max() < 1e-5 * np.abs(found).max()
    quantizer = built(bits=2, odd=True)
    quantizer.initialize(np.zeros(SHAPE, "float32"))
    assert np.abs(array(quantizer(np.zeros(SHAPE, "float32")))).max() < 1e-5


@pytest.mark.slow(6)
def test_a_network_trains_and_its_file_is_exact(tmp_path):
    x = normal((16, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    y = blocks.ConvBlock(8, activation="relu", name="first")(inputs)
    y = blocks.RepVGGBlock(8, activation="relu", name="second")(y)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(y))
    options = {"weight_bits": 2, "calibration_data": x, "verbose": False, "wide_tap": True}
    rules = {"first": {"weight_bits": 8}, "depthwise": {"weight_levels": "uniform"}}
    qat = repq_tf.quantize(model, weight_levels="odd", rules=rules, **options)
    qat.compile(keras.optimizers.SGD(1e-3), "mse")
    assert np.isfinite(qat.train_on_batch(x, np.zeros((16, 3))))
    qat.save(tmp_path / "x.keras")
    qat = keras.models.load_model(tmp_path / "x.keras")
    have = [qat.get_layer(name).weight_levels for name in ("first", "second", "depthwise")]
    assert have == ["uniform", "odd", "uniform"]
    _, report = parity(qat, tmp_path / "x.tflite", x)
    assert_exact(report)
    block, step = qat.get_layer("second"), qat.get_layer("first_quantize").step
    others = array(block.integer_weights(step)[0])[~TAPS]
    assert set(np.unique(others)) <= {-3, -1, 1, 3}
    assert "2 bits, per channel, odd levels" in str(repq_tf.quantization_table(qat))


def test_arguments_are_checked():
    x = np.zeros((1, 8, 8, 3), "float32")
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3)])
    with pytest.raises(ValueError, match="weight_levels must be one of.*'odd'.*'even'"):
        repq_tf.quantize(model, weight_levels="even", calibration_data=x)
    with pytest.raises(ValueError, match="rule 'x': weight_levels must be one of"):
        repq_tf.quantize(model, rules={"x": {"weight_levels": 1}}, calibration_data=x)
    with pytest.raises(ValueError, match="at most 7 bits. Received: a signed grid of 8 bits"):
        LSQ(bits=8, odd=True)
    with pytest.raises(ValueError, match="Received: an unsigned grid of 2 bits"):
        LSQ(bits=2, signed=False, odd=True)
