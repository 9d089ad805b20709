import numpy as np
import pytest
import tensorflow as tf

from repq_tf.keras_api import keras
from repq_tf.tfmot import LSQQuantizeConfig, LSQQuantizer
from tests.tfmot.networks import annotate_layer, apply


class Owner(keras.layers.Layer):
    """A layer to hold a quantizer's variables."""


def build(quantizer):
    owner = Owner()
    return quantizer.build(None, "output", owner), owner


def reference(x, step, low, high, axes, bounded):
    """LSQ (arXiv 1902.08153) in NumPy: values, gradient to x, gradient of the step's change."""
    v = x / step
    y = np.rint(np.clip(v, low, high)) * step
    inside = (v > low) & (v < high)
    error = np.where(inside, np.rint(v) - v, np.clip(v, low, high))
    count = np.prod([x.shape[a] for a in axes])
    scale = 1 / np.sqrt(count * high) / step
    if bounded:
        square = np.mean(error**2, axis=axes) * np.sum(x**2, axis=axes)
        scale = np.minimum(scale, 1 / np.sqrt(square))
    return y, inside, error, scale


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activation_values_and_gradients(bits):
    rng = np.random.default_rng(bits)
    x = rng.normal(1, 2, (4, 5, 6)).astype("float32")
    upstream = rng.normal(size=x.shape).astype("float32")
    quantizer = LSQQuantizer(bits, signed=False, per_image=True, step=0.25)
    weights, _ = build(quantizer)
    with tf.GradientTape() as tape:
        tensor = tf.constant(x)
        tape.watch(tensor)
        y = quantizer(tensor, training=True, weights=weights)
    to_x, to_change = tape.gradient(y, [tensor, weights["change"]], upstream)
    expected, inside, error, _ = reference(x, 0.25, 0, 2**bits - 1, (0, 1, 2), False)
    scale = 1 / np.sqrt(30 * (2**bits - 1)) / 0.25  # of one image
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(to_x, upstream * inside)
    np.testing.assert_allclose(to_change, np.sum(upstream * error) * scale, rtol=1e-4)
    np.testing.assert_array_equal(quantizer(tensor, training=False, weights=weights), expected)


@pytest.mark.parametrize("step_gradient", ["bounded", "lsq"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (3, 3, 6, 1), (3, 3, 3, 2), (7, 6)])
def test_weights_have_a_step_for_each_output_channel(shape, step_gradient):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype("float32")
    upstream = rng.normal(size=shape).astype("float32")
    steps = np.linspace(0.05, 0.5, 6).astype("float32")
    quantizer = LSQQuantizer(4, channels=6, step=steps.tolist(), step_gradient=step_gradient)
    weights, _ = build(quantizer)
    with tf.GradientTape() as tape:
        y = quantizer(tf.constant(x), training=True, weights=weights)
    gradient = tape.gradient(y, weights["change"], upstream)
    rows, flow = x.reshape(-1, 6), upstream.reshape(-1, 6)
    expected, _, error, scale = reference(rows, steps, -8, 7, (0,), step_gradient == "bounded")
    np.testing.assert_allclose(y, expected.reshape(shape), rtol=1e-6)
    np.testing.assert_allclose(gradient, np.sum(flow * error, axis=0) * scale, rtol=1e-3)


def test_the_first_batch_in_training_sets_the_step_once():
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(8, 40)).astype("float32") * s for s in (1, 30))
    quantizer = LSQQuantizer(3, per_image=True)
    weights, owner = build(quantizer)
    run = tf.function(quantizer.__call__)

    def error(x, step):
        return np.sum((np.rint(np.clip(x / step, -4, 3)) * step - x) ** 2)

    # Before training, inference takes each batch's own best step, and keeps none.
    for x in (second, first):
        values = np.unique(run(x, False, weights).numpy())
        assert len(values) <= 8
        best = min(error(x, s) for s in np.geomspace(0.01, 1, 3000) * np.abs(x).max())
        assert np.sum((run(x, False, weights) - x) ** 2) <= 1.02 * best
    assert float(weights["seen"]) == 0
    run(first, True, weights)
    kept = float(weights["initial_step"])
    best = min(error(first, s) for s in np.geomspace(0.01, 1, 3000) * np.abs(first).max())
    assert error(first, kept) <= 1.02 * best
    run(second, True, weights)
    assert float(weights["initial_step"]) == kept and float(weights["seen"]) == 1
    assert [w.name for w in owner.trainable_weights] == ["output_step_change:0"]


def test_a_kernel_of_zeros_has_the_step_of_usual_weights():
    quantizer = LSQQuantizer(4, channels=5)
    weights, _ = build(quantizer)
    tf.function(quantizer.__call__)(tf.zeros((3, 3, 4, 5)), True, weights)
    np.testing.assert_allclose(weights["initial_step"], np.full(5, 1 / (6 * 7)), rtol=1e-6)


def test_depthwise_channels_of_any_size_survive():
    """TFMOT's own has one range for all channels, which loses the small ones."""
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e-3, 10, 8)
    kernel = (rng.normal(size=(3, 3, 8, 1)) * sizes[:, None]).astype("float32")
    x = np.zeros((1, 5, 5, 8), "float32")
    x[0, 2, 2] = 1  # the output is the kernel, mirrored

    def restored(config):
        layer = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        inputs = keras.Input((5, 5, 8))
        model = keras.Model(inputs, annotate_layer(layer, config)(inputs))
        layer.depthwise_kernel.assign(kernel)
        model = apply(model)
        model(x, training=True)  # sets the range of TFMOT's own quantizer of the input
        return model(x, training=False).numpy()[0, 1:4, 1:4][::-1, ::-1]

    config = LSQQuantizeConfig(weight_bits=8, activation_bits=None)
    difference = np.abs(restored(config) - kernel[..., 0]).max(axis=(0, 1))
    assert (difference <= np.abs(kernel).max(axis=(0, 1, 3)) / 127).all()
    coarse = LSQQuantizeConfig(weight_bits=8, activation_bits=None, per_channel=False)
    assert not restored(coarse)[..., 0].any()


@pytest.mark.parametrize("bits", [1, 9, 2.5, True])
def test_bad_bits(bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8"):
        LSQQuantizer(bits)
