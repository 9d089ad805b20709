import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import models, quantizers
from repq_tf.layers import Quantize


@pytest.fixture
def pixels(rng):
    """Whole grey levels, as a network gets them."""
    return ((rng.integers(0, 256, (6, 8, 8, 1)) - 128) / 128).astype("float32")


def _quantized(pixels, **options):
    model = models.ecbsr(m=1, c=4, scale=2, merged=True)
    options = {"input_step": 1 / 128, "output_step": 1 / 128, **options}
    return repq_tf.quantize(model, calibration_data=pixels, verbose=False, **options)


def _steps(model):
    return {
        layer.name: float(layer.step) for layer in model.layers if isinstance(layer, Quantize)
    }


@pytest.mark.slow(10)
def test_fixed_steps_stay_and_others_are_learned(pixels, tmp_path):
    model = _quantized(pixels, bits=2)
    before = _steps(model)
    model.trainable = False
    model.trainable = True
    model.compile(keras.optimizers.Adam(0.01), "mean_absolute_error")
    large = pixels.repeat(2, axis=1).repeat(2, axis=2)[:, ::-1]
    model.fit(pixels, large, epochs=2, batch_size=3, verbose=0)
    after = _steps(model)
    fixed = {name for name, step in after.items() if step == before[name]}
    assert fixed == {"image_quantize", "add"}
    assert after["image_quantize"] == after["add"] == 1 / 128
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert _steps(loaded) == after
    loaded.trainable = False
    loaded.trainable = True
    trained = {variable.path for variable in loaded.trainable_variables}
    assert not any("add/" in path or "image_quantize/" in path for path in trained)


@pytest.mark.slow
def test_every_grey_level_is_a_number_of_the_file(pixels, tmp_path):
    model, path = _quantized(pixels), str(tmp_path / "model.tflite")
    levels = np.arange(256).reshape(1, 16, 16, 1)
    values = ((levels - 128) / 128).astype("float32")
    (quantizer,) = (q for name, q in quantizers.find(model).items() if "image" in name)
    np.testing.assert_array_equal(quantizer.integers(values), levels - 128)
    repq_tf.export_tflite(model, path)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    for details in (*interpreter.get_input_details(), *interpreter.get_output_details()):
        assert details["dtype"] == np.int8 and details["quantization"] == (1 / 128, 0)
    assert repq_tf.check_parity(model, path, values).equal_outputs == 1


@pytest.mark.slow
def test_the_input_alone_can_be_fixed(pixels):
    steps = _steps(_quantized(pixels, output_step=None))
    assert steps["image_quantize"] == 1 / 128 != steps["add"]


@pytest.mark.parametrize("name", ["input_step", "output_step"])
@pytest.mark.parametrize("step", [0, -1.0, float("nan"), float("inf")])
def test_steps_must_be_positive(pixels, name, step):
    with pytest.raises(ValueError, match=f"{name} must be a number above 0. Received: {step}"):
        _quantized(pixels, **{name: step})


def test_a_tensor_has_one_step(pixels):
    images = keras.Input((8, 8, 1), name="image")
    pooled = keras.layers.MaxPooling2D(name="pooled")(images)
    model = keras.Model(images, pooled)
    with pytest.raises(ValueError, match="'pooled': its step cannot be fixed at 0.5.*'image'"):
        repq_tf.quantize(model, calibration_data=pixels, input_step=0.25, output_step=0.5)
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    model = keras.Model(images, keras.layers.Softmax(name="classes")(logits))
    with pytest.raises(ValueError, match="'classes': its step cannot be fixed at 0.5"):
        repq_tf.quantize(model, calibration_data=pixels, output_step=0.5)
