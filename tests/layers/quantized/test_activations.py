import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf
from repq_tf.layers import QuantizedLeakyReLU, QuantizedPReLU
from tests.block_case import array

ALPHA = np.float32([0.25, -0.7, 1.3, 0.0, 1e-9, 1.0])


def prelu(bits, signed=True, step=0.0413):
    layer = QuantizedPReLU(bits, signed)
    layer(np.zeros((1, 2, 2, len(ALPHA)), "float32"), np.float32(1))
    layer.alpha.assign(ALPHA[None, None])
    layer.activation_quantizer.set_step(np.float32(step))
    return layer


def on_a_grid(step, low=-128, high=128, seed=0):
    levels = np.random.default_rng(seed).integers(low, high, (3, 5, 5, len(ALPHA)))
    return levels, (levels * np.float32(step)).astype("float32")


@pytest.mark.parametrize("bits", [8, 5, 2])
@pytest.mark.parametrize("step_in", [0.05, 0.0011, 0.3])
def test_prelu_rounds_once(bits, step_in):
    """Against the exact quotient: at most half a step off, and to even integers there."""
    step = np.float32(0.0413)
    levels, x = on_a_grid(step_in)
    y, out_step = prelu(bits)(x, np.float32(step_in))
    assert float(out_step) == step
    exact = levels * np.where(levels < 0, ALPHA, 1).astype("float64")
    exact = exact * (np.float64(np.float32(step_in)) / step)
    exact = np.clip(exact, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    got = array(y) / step
    np.testing.assert_allclose(got, np.rint(got), atol=1e-4)
    assert np.abs(got - exact).max() <= 0.5 + 1e-4
    assert len(np.unique(np.rint(got))) > 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_leaves_inference_of_prelu_alone(policy, tmp_path):
    levels, x = on_a_grid(0.05)
    expected = array(prelu(8)(x, np.float32(0.05))[0])
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input(x.shape[1:], dtype="float32")
        step = keras.ops.full((), 0.05)
        model = keras.Model(inputs, prelu(8)(inputs, step)[0])
        model.save(tmp_path / "m.keras")
        for either in (model, keras.models.load_model(tmp_path / "m.keras")):
            np.testing.assert_array_equal(array(either(x)), expected)
            assert array(either(x, training=True)).dtype.name == policy.removeprefix("mixed_")
    finally:
        keras.config.set_dtype_policy("float32")


def test_prelu_of_unsigned_features_is_a_rescaling():
    levels, x = on_a_grid(0.05, 0, 256)
    y, _ = prelu(8, signed=False, step=0.05)(x, np.float32(0.05))
    np.testing.assert_allclose(array(y), x, rtol=1e-6)


def test_prelu_trains_alpha_and_the_step():
    layer = prelu(4)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 6)).astype("float32")
    inputs = keras.Input((6, 6, 6))
    model = keras.Model(inputs, layer(inputs, keras.ops.ones(()))[0])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    before = [array(w).copy() for w in layer.trainable_weights]
    model.train_on_batch(x, np.ones_like(x))
    changed = [
        np.abs(array(w) - b) for w, b in zip(layer.trainable_weights, before, strict=True)
    ]
    assert all((change > 0).any() for change in changed) and len(changed) == 2
    assert (array(layer.alpha) != ALPHA).all()
    # Forward: the activation in floating point, rounded to the grid.
    y, step = layer(x, np.float32(1), training=True)
    alpha, step = array(layer.alpha), float(step)
    expected = np.rint(np.clip(np.where(x < 0, alpha * x, x) / step, -8, 7)) * step
    assert np.mean(np.abs(array(y) - expected) > 1e-5) < 0.001


@pytest.mark.parametrize("slope", [0.3, 0.01, 0.0, 1.7, 0.001])
def test_leaky_relu_has_a_slope_in_units_of_one_256th(slope):
    levels, x = on_a_grid(0.05)
    layer = QuantizedLeakyReLU(slope)
    y = array(layer(x, np.float32(0.05)))
    rounded = levels * round(slope * 256) + 128 >> 8
    np.testing.assert_array_equal(
        np.rint(y / np.float32(0.05)), np.where(levels < 0, rounded, levels)
    )
    trained = array(layer(x, np.float32(0.05), training=True))
    np.testing.assert_allclose(trained, np.where(x < 0, round(slope * 256) / 256 * x, x))


def test_bad_slopes_are_refused():
    for slope in (-0.1, 129):
        with pytest.raises(ValueError, match=f"at least 0 and at most 128. Received: {slope}"):
            QuantizedLeakyReLU(slope)


def test_saved_and_loaded(tmp_path):
    inputs = keras.Input((8, 8, 3))
    start = keras.initializers.RandomUniform(-0.5, 0.5)
    regularizer = keras.regularizers.L2(0.01)
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.PReLU(start, shared_axes=[1, 2], alpha_regularizer=regularizer)(x)
    x = keras.layers.LeakyReLU(0.1)(keras.layers.Conv2D(4, 3)(x))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    model = repq_tf.quantize(
        keras.Model(inputs, x), bits=4, calibration_data=images, verbose=False
    )
    assert len(model.losses) == 1
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(array(loaded(images)), array(model(images)))
    assert len(loaded.losses) == 1


@pytest.mark.slow
def test_constraints_and_frozen_alphas_stay(tmp_path):
    inputs = keras.Input((8, 8, 3))
    options = {"shared_axes": [1, 2], "alpha_constraint": keras.constraints.MaxNorm(0.2)}
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.PReLU("zeros", name="p", **options)(x)
    x = keras.layers.PReLU("ones", name="frozen", trainable=False, **options)(x)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    float_model = keras.Model(inputs, x)
    model = repq_tf.quantize(float_model, bits=4, calibration_data=images, verbose=False)
    model.save(tmp_path / "x.keras")
    model = keras.models.load_model(tmp_path / "x.keras")
    model.compile(keras.optimizers.SGD(10.0), "mse")
    layers = [model.get_layer(name) for name in ("p", "frozen")]
    steps = [float(layer.step) for layer in layers]
    model.fit(images, -np.ones((8, 6, 6, 4)), verbose=0)
    # The norm is of each alpha, as in the float model.
    np.testing.assert_allclose(np.abs(array(layers[0].alpha)), 0.2, rtol=1e-5)
    np.testing.assert_array_equal(array(layers[1].alpha), 1)
    assert all(float(layer.step) != s for layer, s in zip(layers, steps, strict=True))
    model.trainable = False
    model.trainable = True
    assert len(layers[1].trainable_variables) == 2


@pytest.mark.parametrize("kind", ["prelu", "leaky"])
def test_the_gradient_at_0_is_keras_s(kind):
    """Quantized features are 0 often."""
    layer = QuantizedLeakyReLU(0.25) if kind == "leaky" else QuantizedPReLU(8, True)
    x = tf.Variable([[-1.0, 0.0, 1.0]])
    if kind == "prelu":
        layer.build(x.shape)
        layer.alpha.assign(np.full(layer.alpha.shape, 0.25))
    with tf.GradientTape() as tape:
        y = layer.values(x)
    expected = [[0.25, 0.25, 1.0]]
    np.testing.assert_array_equal(tape.gradient(y, x), expected)
    with tf.GradientTape() as tape:
        y = keras.ops.leaky_relu(x, 0.25)
    np.testing.assert_array_equal(tape.gradient(y, x), expected)
