"""Dampened oscillations against NumPy in double precision, and in training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf
from repq_tf import layers as blocks
from repq_tf.quantizers import LSQ, kernel_quantizer

array = keras.ops.convert_to_numpy
W = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype("float32")


@pytest.mark.parametrize("kind", ["uniform", "odd", "wide", "cluster"])
def test_the_distance_is_that_to_the_levels(kind):
    levels = "uniform" if kind == "wide" else kind
    quantizer = kernel_quantizer(levels, kind == "wide", bits=2, channels=4)
    quantizer.build(None)
    quantizer.initialize(W)
    step = array(quantizer.step).astype("f8")
    low, high = (np.asarray(bound, "f8") for bound in quantizer.bounds(W.shape))
    clipped = np.clip(W.astype("f8"), low * step, high * step)
    difference = clipped - array(quantizer(W)).astype("f8")
    with tf.GradientTape() as tape:
        x = tf.constant(W)
        tape.watch(x)
        distance = quantizer.distance(x)
    variables = [v.value for v in quantizer.trainable_variables]
    to_x, *others = tape.gradient(distance, [x, *variables])
    assert array(distance) == pytest.approx(np.square(difference).sum(), rel=1e-5)
    expected = np.where(clipped == W, 2 * difference, 0)
    np.testing.assert_allclose(to_x, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1 and others == [None] * len(others)


def test_only_training_has_the_loss():
    x = np.ones((2, 6, 6, 4), "float32")
    for dampening in (0.0, 0.5):
        block = blocks.ConvBlock(4, weight_bits=2, dampening=dampening)
        block.build(x.shape)
        block.weight_quantizer.initialize(array(block.inner.merge().kernel))
        block(x, training=False)
        assert block.losses == []
        block(x, training=True)
        distance = array(block.weight_quantizer.distance(block.inner.merge().kernel))
        expected = [0.5 * distance] if dampening else []
        assert [array(loss) for loss in block.losses] == pytest.approx(expected, rel=1e-6)
    assert distance > 0.1 and isinstance(block.weight_quantizer, LSQ)


@pytest.mark.slow(6)
def test_weights_end_nearer_to_their_levels():
    x = np.random.default_rng(1).normal(size=(16, 6, 6, 4)).astype("float32")
    y = np.random.default_rng(2).normal(size=(16, 4)).astype("float32")
    ends = []
    for dampening in (0.0, 0.3):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6, 6, 4))
        h = blocks.ACBlock(4, activation="relu", name="a")(inputs)
        h = blocks.ACBlock(4, activation="relu", name="b")(h)
        model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(h))
        rules = {"b": {"weight_bits": 2}}  # the last layer has 8 otherwise
        options = {"rules": rules, "calibration_data": x, "verbose": False}
        qat = repq_tf.quantize(model, dampening=dampening, **options)
        qat.compile(keras.optimizers.SGD(0.01), "mse")
        for _ in range(40):
            qat.train_on_batch(x, y)
        config = qat.get_config()
        block = keras.Model.from_config(config).get_layer("b")
        assert block.dampening == dampening
        block = qat.get_layer("b")
        ends.append(float(block.weight_quantizer.distance(block.inner.merge().kernel)))
    assert ends[1] < 0.5 * ends[0]


def test_it_is_checked():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 3)])
    with pytest.raises(ValueError, match="dampening must be a number at least 0. Received: -1"):
        repq_tf.quantize(model, dampening=-1, calibration_data=np.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="dampening"):
        blocks.ConvBlock(3, dampening="much")
