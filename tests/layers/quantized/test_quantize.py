"""The layers that round activations, against integers in NumPy."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.layers import Quantize, QuantizedAdd, QuantizedMean

ops = keras.ops
array = ops.convert_to_numpy


def layer_of(kind, step, **options):
    layer = kind(**options)
    layer.build((None, 4))
    layer.activation_quantizer.set_step(step)
    return layer


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_training_and_inference_round_alike(bits, signed, rng):
    layer = layer_of(Quantize, 0.1, bits=bits, signed=signed)
    x = rng.normal(size=(50, 4)).astype("float32") * 2**bits * 0.05
    y, step = layer(x)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    levels = np.rint(np.clip(x / np.float32(0.1), low, high))
    np.testing.assert_array_equal(array(y), levels * np.float32(0.1))
    np.testing.assert_array_equal(array(layer(x, training=True)[0]), array(y))
    assert float(step) == np.float32(0.1) and len(np.unique(levels)) > 2


def test_a_finer_grid_is_rescaled_as_integers(rng):
    """`round(acc * (scale / step))`: the runtime never sees the products in float."""
    layer = layer_of(Quantize, 0.1, bits=8, signed=False)
    scale = np.float32([0.0013, 0.00071, 0.02, 1e-6])
    accumulators = rng.integers(-3000, 9000, (200, 4)).astype("float32")
    y, _ = layer(ops.convert_to_tensor(accumulators * scale), ops.convert_to_tensor(scale))
    levels = np.clip(np.rint(accumulators * (scale / np.float32(0.1))), 0, 255)
    np.testing.assert_array_equal(array(y), levels * np.float32(0.1))


def test_a_fixed_step_is_not_trained():
    layer = Quantize(8, signed=False, step=1 / 256)
    x = ops.convert_to_tensor(np.linspace(0, 1, 9, dtype="float32")[None])
    y, step = layer(x, training=True)
    for trainable in (True, False, True):
        layer.trainable = trainable
        assert float(step) == 1 / 256 and not layer.trainable_variables
    twin = Quantize.from_config(layer.get_config())
    np.testing.assert_array_equal(array(twin(x)[0]), array(y))


@settings(max_examples=40)
@given(
    steps=st.tuples(*[st.floats(0.003, 0.3)] * 3),
    activation=st.sampled_from(("linear", "relu")),
    signed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_residual_sum_in_fixed_point(steps, activation, signed, seed):
    """Against Python's integers; and within one level of the sum in real numbers."""
    rng = np.random.default_rng(seed)
    steps = np.float32(steps)
    signed = signed and activation == "linear"
    layer = layer_of(QuantizedAdd, steps[2], bits=8, signed=signed, activation=activation)
    a, b = rng.integers(-128, 256, (2, 60))
    y, step = layer(
        *(
            ops.convert_to_tensor((n * s)[None])
            for n, s in ((a.astype("float32"), steps[0]), (b.astype("float32"), steps[1]))
        ),
        *(ops.convert_to_tensor(s) for s in steps[:2]),
    )
    levels = np.rint(array(y)[0] / array(step)).astype(int)
    ratios = steps[:2] / steps[2]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    factors = [int(np.rint(np.float32(r) * 2.0**shift)) for r in ratios]
    low, high = (-128, 127) if signed else (0, 255)
    exact = []
    for one, other in zip(a.tolist(), b.tolist(), strict=True):
        total = (one * factors[0] + other * factors[1] + (1 << (shift - 1))) >> shift
        exact.append(min(max(total, low), high))
    np.testing.assert_array_equal(levels, exact)
    real = np.clip((a * float(steps[0]) + b * float(steps[1])) / float(steps[2]), low, high)
    assert np.abs(levels - real).max() <= 0.502


@settings(max_examples=25)
@given(
    bits=st.integers(2, 8),
    steps=st.tuples(st.floats(0.01, 0.2), st.floats(0.01, 0.2)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 999),
)
def test_a_mean_is_within_half_a_level(bits, steps, size, seed):
    steps = np.float32(steps)
    layer = layer_of(QuantizedMean, steps[1], bits=bits, signed=False)
    n = np.random.default_rng(seed).integers(0, 256, (2, *size, 3))
    x = ops.convert_to_tensor(n.astype("float32") * steps[0])
    y, _ = layer(x, ops.convert_to_tensor(steps[0]))
    real = np.clip(n.mean((1, 2)) * float(steps[0]) / float(steps[1]), 0, 2**bits - 1)
    assert np.abs(array(y) / steps[1] - real).max() <= 0.501
    trained, _ = layer(x, ops.convert_to_tensor(steps[0]), training=True)
    assert np.abs(array(trained) - array(y)).max() <= 1.001 * steps[1]


@pytest.mark.parametrize("kind", [Quantize, QuantizedAdd, QuantizedMean])
def test_configuration_and_bad_bits(kind):
    layer = kind(bits=3, signed=False, name="some_name")
    assert kind.from_config(layer.get_config()).get_config() == layer.get_config()
    for bits in (1, 9, 2.5):
        with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8"):
            kind(bits=bits)
    with pytest.raises(ValueError, match="step must be a number above 0"):
        Quantize(step=0.0).build((None, 3))
