"""Restored batch norms keep the function, in inference exactly and in training nearly."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers as blocks
from tests.deployment.files import assert_exact, parity
from tests.fuzz.check import randomize
from tests.post_training.networks import images
from tests.quantization.networks import relative
from tests.reference import convolution, moments

layers = keras.layers
array = keras.ops.convert_to_numpy


def merged():
    """A network without batch norms: stock layers, blocks of ours; one filter is dead."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = blocks.ConvBlock(6, 1, activation="relu", name="plain")(x)
    y = blocks.ECB(6, name="ecb")(x)
    y = blocks.RepVGGBlock(6, use_batch_norm=False, activation="relu", name="vgg")(y)
    x = layers.Conv2D(6, 1, activation="silu", groups=2, name="grouped")(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    randomize(model, np.random.default_rng(0))
    kernel = array(model.get_layer("stem").kernel).copy()
    kernel[..., 2] = 0
    model.get_layer("stem").kernel.assign(kernel)
    model.get_layer("depthwise").trainable = False
    return model


NAMES = ("stem", "depthwise", "plain", "ecb", "vgg", "grouped")


@pytest.fixture(scope="module")
def restored():
    model = merged()
    x = images(model, 64)
    return model, repq_tf.restore_batch_norm(model, x, verbose=False), x


def test_inference_is_kept_and_training_starts_from_it(restored):
    model, new, x = restored
    y = array(model(x))
    assert relative(new(x), y) < 2e-6
    other = 5 * images(model, 8, seed=9)
    assert relative(new(other), model(other)) < 2e-6
    # The batch norms see all that their moments were measured on.
    start = new.get_weights()
    assert relative(new(x, training=True), y) < 1e-3
    new.set_weights(start)


def test_the_batch_norms_have_the_moments_of_the_convolution(restored):
    model, new, x = restored
    stem, block = model.get_layer("stem"), new.get_layer("stem")
    y = convolution(x, stem.kernel, None, 1, (2, 2), ((0, 1), (0, 1)))
    mean, variance = moments(y)
    root = block.root
    close = {"rtol": 1e-4, "atol": 1e-6}
    np.testing.assert_allclose(array(root.statistics.moving_mean), mean, **close)
    np.testing.assert_allclose(array(root.statistics.moving_variance), variance, **close)
    gamma = np.where(np.arange(6) == 2, 0, np.sqrt(variance + root.epsilon))
    np.testing.assert_allclose(array(root.gamma), gamma, **close)
    np.testing.assert_allclose(array(root.beta), mean + array(stem.bias), **close)
    assert isinstance(block, blocks.ConvBNBlock) and block.inner.bias is None


def test_what_was_restored_and_what_was_left(restored, capsys):
    _, new, x = restored
    for name in NAMES:
        assert new.get_layer(name).root is not None
    assert not new.get_layer("depthwise").trainable and new.get_layer("stem").trainable
    keras.utils.set_random_seed(0)
    model = merged()
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(3, 3, dilation_rate=2, padding="same", name="dilated")(inputs)
    y = layers.BatchNormalization()(layers.Conv2D(3, 1, name="normal")(y))
    y = blocks.ACBlock(3, name="branches")(y)
    mixed = keras.Model(inputs, model(y))
    new = repq_tf.restore_batch_norm(mixed, x)
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "left" in told["dilated"] and "dilation_rate" in told["dilated"]
    assert "left" in told["normal"] and "left" in told["branches"]
    assert "1 constant channels" in told[f"{model.name}_stem"]
    assert relative(new(x), mixed(x)) < 2e-6


def test_layers_chooses(restored):
    model, _, x = restored
    new = repq_tf.restore_batch_norm(model, x, layers=["*wise", "stem"], verbose=False)
    for name in NAMES:
        root = getattr(new.get_layer(name), "root", None)
        assert (root is not None) == (name in ("stem", "depthwise"))


def test_it_is_quantized_trained_and_exported_as_any_other(restored, tmp_path):
    _, new, x = restored
    qat = repq_tf.quantize(new, calibration_data=x, verbose=False)
    assert relative(qat(x), new(x)) < 0.2
    qat.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    qat.fit(x, array(new(x)), batch_size=32, verbose=0)
    _, report = parity(qat, tmp_path / "restored.tflite", x)
    assert_exact(report)
    new.save(tmp_path / "restored.keras")
    loaded = keras.models.load_model(tmp_path / "restored.keras")
    np.testing.assert_array_equal(array(loaded(x)), array(new(x)))


def test_bad_arguments_are_named(restored):
    model, new, x = restored
    with pytest.raises(ValueError, match="layers: 'conv' matches no convolution. .*: stem"):
        repq_tf.restore_batch_norm(model, x, layers="conv")
    with pytest.raises(ValueError, match="layers must be name patterns. Received: 3"):
        repq_tf.restore_batch_norm(model, x, layers=3)
    with pytest.raises(ValueError, match="no batch norm can be restored. stem: it has one"):
        repq_tf.restore_batch_norm(new, x)
    with pytest.raises(ValueError, match="must be batches of images of shape"):
        repq_tf.restore_batch_norm(model, x[..., :2])
    with pytest.raises(ValueError, match="values that are all 1"):
        repq_tf.restore_batch_norm(model, np.ones_like(x))
    qat = repq_tf.quantize(model, calibration_data=x, verbose=False)
    with pytest.raises(ValueError, match="is quantized already"):
        repq_tf.restore_batch_norm(qat, x)
