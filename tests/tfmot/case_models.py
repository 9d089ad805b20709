"""Whole models of our blocks and stock layers: trained, saved, loaded, exported, compared."""

import numpy as np
import pytest

import repq_tf
from repq_tf.keras_api import keras
from repq_tf.tfmot import RepQScheme, from_tfmot
from tests.tfmot.networks import annotate, apply, images, network, train

X, Y = images()
# Of kernels of few bits: odd numbers, and int8 for the weight of an identity.
LEVELS = {"weight_levels": "odd", "wide_tap": True, "rules": {"conv": {"wide_tap": False}}}


@pytest.fixture(scope="module")
def trained():
    """The weights of the network, trained in floating point."""
    keras.utils.set_random_seed(0)
    model = network()
    train(model, X, Y, epochs=3)
    return model.get_weights()


@pytest.fixture(scope="module")
def four_bits(trained, tmp_path_factory):
    """A calibrated model after an epoch at 4 bits: its weights, a `.keras` file, itself."""
    keras.utils.set_random_seed(0)
    model = quantized(trained, 4, X, **LEVELS)
    train(model, X, Y, epochs=1)
    path = tmp_path_factory.mktemp("four_bits") / "model.keras"
    model.save(path)
    return model.get_weights(), path, model


def quantized(weights, bits, calibration_data, **options):
    model = network()
    model.set_weights(weights)
    return apply(
        annotate(model), RepQScheme(bits, calibration_data=calibration_data, **options)
    )


def integers(model):
    """The outputs of the equal model of our layers, whose inference is the file's."""
    return from_tfmot(model).predict(X, verbose=0)


def assert_file_equals(model, path):
    operators = repq_tf.export_tflite(model, path)
    assert operators["CONV_2D"] == 4 and operators["DEPTHWISE_CONV_2D"] == 1
    report = repq_tf.check_parity(model, path, X)
    assert report.images == len(X)
    assert report.top1_agreement == report.equal_outputs == 1
    assert [layer.different for layer in report.layers] == [0] * 8, str(report)


def test_8_bits_without_calibration(trained, tmp_path):
    model = quantized(trained, 8, None)
    history = train(model, X, Y)
    assert history["loss"][1] < history["loss"][0] and history["accuracy"][1] > 0.95
    assert_file_equals(model, tmp_path / "model.tflite")
    # What TFMOT simulates in floating point, without the rounding of biases, is near it.
    simulated = model.predict(X, verbose=0)
    np.testing.assert_array_equal(simulated.argmax(1), integers(model).argmax(1))


def test_save_load_train_on_and_export(four_bits, tmp_path):
    weights, path, model = four_bits
    loaded = keras.models.load_model(path)  # without quantize_scope()
    for one in (model, loaded):
        one.fit(X, Y, batch_size=16, shuffle=False, verbose=0)
    for variable, old, a, b in zip(
        model.weights, weights, model.get_weights(), loaded.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=variable.name)
        # Betas of merged batch norms cancel in the restored one.
        if variable.trainable and "beta" not in variable.name:
            assert not np.array_equal(a, old), variable.name
    assert_file_equals(loaded, tmp_path / "model.tflite")


def test_training_is_that_of_our_own_layers(trained, four_bits, tmp_path):
    ours = network()
    ours.set_weights(trained)
    ours = repq_tf.quantize(ours, bits=4, calibration_data=X, verbose=False, **LEVELS)
    assert ours.get_layer("vgg").wide_tap and ours.get_layer("ac").weight_levels == "uniform"
    train(ours, X, Y, epochs=1)
    repq_tf.export_tflite(ours, tmp_path / "ours.tflite")
    theirs = keras.models.load_model(four_bits[1], compile=False)
    repq_tf.export_tflite(theirs, tmp_path / "theirs.tflite")
    assert (tmp_path / "ours.tflite").read_bytes() == (tmp_path / "theirs.tflite").read_bytes()


def test_two_replicas_train_as_one_device(trained, four_bits, two_replicas, tmp_path):
    with two_replicas.scope():
        model = quantized(trained, 4, X, **LEVELS)
    train(model, X, Y, epochs=1)
    for variable, a, b in zip(model.weights, four_bits[0], model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=variable.name)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert_file_equals(loaded, tmp_path / "model.tflite")


@pytest.mark.parametrize("data", [None, images()[0]], ids=["uncalibrated", "calibrated"])
def test_the_published_step_gradient_reaches_all_weights(data):
    model = apply(annotate(network()), RepQScheme(calibration_data=data, step_gradient="lsq"))
    configs = [getattr(layer, "quantize_config", None) for layer in model.layers]
    found = [
        quantizer.step_gradient
        for layer, config in zip(model.layers, configs, strict=True)
        if config is not None
        for _, quantizer in config.get_activations_and_quantizers(layer.layer)
    ]
    assert found == ["lsq"] * 6
    if data is None:  # whose steps are not set yet
        return
    blocks = [layer for layer in from_tfmot(model).layers if hasattr(layer, "step_gradient")]
    assert [block.step_gradient for block in blocks] == ["lsq"] * 6


def test_a_foreign_quantizer_is_named_with_what_to_do(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs))
    model = apply(annotate(model))
    with pytest.raises(ValueError, match="its quantizer must be .* scheme=repq_tf.tfmot.RepQS"):
        repq_tf.export_tflite(model, tmp_path / "model.tflite")
