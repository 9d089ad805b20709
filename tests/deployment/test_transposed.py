"""Transposed convolutions in a file: of every size and stride, exact in every runtime."""

import keras
import numpy as np
import pytest

import repq_tf
from tests.deployment.files import assert_exact
from tests.quantization.networks import array

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(0.2, 1, (16, 8, 8, 3)).astype("float32")


def unet(x):
    """Decoders of strides 2, 4 and 3, with batch norms, a bias alone, and 4x4 kernels."""
    a = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(x)
    h = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="b")(a)
    h = layers.Conv2DTranspose(6, 2, strides=2, use_bias=False, name="up")(h)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.Concatenate()([h, a])
    h = layers.Conv2DTranspose(5, 3, strides=2, padding="same", activation="relu6")(h)
    h = layers.Conv2DTranspose(4, 4, strides=2, padding="same", activation="silu")(h)
    return layers.Conv2D(2, 1, name="end")(h)


def valid(x):
    """Kernels beyond their strides, whose output is cut."""
    x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu")(x)
    return layers.Conv2DTranspose(3, (5, 4), strides=4)(x)


def strided(x):
    x = layers.Conv2DTranspose(4, 8, strides=4, padding="same")(x)
    x = layers.BatchNormalization()(layers.Conv2DTranspose(4, 3, name="one")(x))
    return layers.Conv2DTranspose(3, 2, strides=3)(x)


def quantized(function, **options):
    keras.utils.set_random_seed(0)
    x = keras.Input(X.shape[1:])
    model = keras.Model(x, function(x))
    return repq_tf.quantize(model, calibration_data=X, verbose=False, **options)


def trained(model):
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    model.train_on_batch(X, np.zeros((len(X), *model.output_shape[1:])))
    return model


CASES = {
    "unet": (unet, {"bits": 8}),
    "unet, 3 bits": (unet, {"bits": 3}),
    "valid": (valid, {"bits": 8}),
    "strided": (strided, {"bits": 5}),
    "int16": (strided, {"bits": 8, "activation_bits": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_trained_files_are_exact(case, tmp_path):
    function, options = CASES[case]
    model, path = trained(quantized(function, **options)), tmp_path / "model.tflite"
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    operators = repq_tf.export_tflite(loaded, path)
    assert "TRANSPOSE_CONV" not in operators
    assert_exact(repq_tf.check_parity(loaded, path, X, verbose=False))


@pytest.mark.parametrize("runtime", ["reference", "tflm"])
def test_other_runtimes(runtime, tmp_path):
    if runtime == "tflm":
        pytest.importorskip("tflite_micro")
    model, path = quantized(unet), tmp_path / "model.tflite"
    repq_tf.export_tflite(model, path)
    repq_tf.export_c_array(path, tmp_path / "model.h")
    report = repq_tf.check_parity(model, path, X[:4], runtime=runtime, verbose=False)
    assert_exact(report)


def test_four_bit_kernels_are_packed(tmp_path):
    model, path = quantized(unet, bits=8, weight_bits=4), tmp_path / "model.tflite"
    repq_tf.export_tflite(model, path, container="int4")
    assert_exact(repq_tf.check_parity(model, path, X, verbose=False))


def test_images_of_any_size(tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((None, None, 3))
    model = keras.Model(x, layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x))
    model = repq_tf.quantize(model, calibration_data=X, verbose=False)
    repq_tf.export_tflite(model, tmp_path / "any.tflite")
    for images in (X, X[:3, :5, :7]):
        assert_exact(repq_tf.check_parity(model, tmp_path / "any.tflite", images))


def test_merged_layers_are_keras_own():
    model = quantized(unet)
    merged = repq_tf.merge(model)
    kinds = [type(layer).__name__ for layer in merged.layers]
    assert kinds.count("Conv2DTranspose") == 3 and "BatchNormalization" not in kinds
    np.testing.assert_allclose(array(merged(X)), array(model(X)), atol=0.05)


def test_thinned_moments_are_those_of_all_phases():
    """Phases of other biases would make another mean of every second pixel."""
    keras.utils.set_random_seed(0)
    images = RNG.normal(size=(16, 40, 40, 3)).astype("float32")
    x = keras.Input(images.shape[1:])
    layer = layers.Conv2DTranspose(4, 2, strides=2, name="up")
    model = keras.Model(x, layer(x))
    kernel = RNG.normal(size=layer.kernel.shape)
    kernel[0, 0] += 3  # of one phase alone
    layer.kernel.assign(kernel)
    shifted = images + 1
    quantized = repq_tf.quantize(model, calibration_data=shifted, bits=4, verbose=False)
    error = array(quantized(shifted)) - array(model(shifted))
    assert np.abs(error.mean((0, 1, 2))).max() < 0.1


REFUSED = {
    "strides must be equal": {"strides": (1, 2)},
    "output_padding must be None": {"strides": 2, "output_padding": 1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_by_name(message):
    with pytest.raises(ValueError, match=f"'up' .Conv2DTranspose.: (its )?{message}"):
        quantized(lambda x: layers.Conv2DTranspose(4, 3, name="up", **REFUSED[message])(x))
