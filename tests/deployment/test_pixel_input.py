"""Files that take camera pixels: exactly the model on normalised images."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import repq_tf
from repq_tf.tflite import reading
from repq_tf.tflite.pixels import pixels_of
from tests.deployment.files import assert_exact, run
from tests.quantization.networks import SHAPE, array, images, network, quantize, residual

PIXELS = np.random.default_rng(0).integers(0, 256, (24, *SHAPE)).astype("uint8")
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def to_unit(x):
    """What the training program does, in its order of roundings."""
    return x.astype("float32") / np.float32(127.5) - np.float32(1)


def normalize(pixels, x):
    if callable(pixels):
        return pixels(x)
    mean, std = (np.float32(value) for value in pixels)
    return (x.astype("float32") - mean) / std


@pytest.fixture(scope="module")
def qat():
    return quantize(network(residual), calibration_data=to_unit(PIXELS))


def with_step(step, bits=8, signed=True):
    """A model of one convolution whose input grid has a given step."""
    inputs = keras.Input((16, 16, 3), name="image")
    x, scale = repq_tf.layers.Quantize(bits, signed, step=step, name="grid")(inputs)
    y = repq_tf.layers.ConvBlock(2, 1, weight_bits=8, name="a")(x, scale)
    return keras.Model(inputs, repq_tf.layers.Quantize(8, name="b")(*y)[0])


def stored_input(path, x):
    """The int8 input of the network, inside the file."""
    interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True)
    (entry,) = interpreter.get_input_details()
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], x)
    interpreter.invoke()
    (inner,) = (d for d in interpreter.get_tensor_details() if d["name"] == "image")
    return interpreter.get_tensor(inner["index"]).astype(int), inner["quantization"]


@pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve:UserWarning")
@pytest.mark.parametrize("pixels", [to_unit, (127.5, 127.5), (0, 255), IMAGENET])
@pytest.mark.parametrize(
    "step, bits, signed",
    # Around the pixels' own step, where ties lie; clipping; unsigned; few bits.
    [
        (2 / 255, 8, True),
        (0.0078, 8, True),
        (6 / 255, 8, True),
        (1 / 510, 8, False),
        (0.3, 3, True),
    ],
)
def test_all_pixel_values(pixels, step, bits, signed, tmp_path):
    path = tmp_path / "x.tflite"
    model = with_step(step, bits, signed)
    repq_tf.export_tflite(model, path, input_type="uint8", pixels=pixels)
    x = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1).repeat(3, axis=-1)
    if not callable(pixels):
        described = repq_tf.export_metadata(path, pixels=pixels)["normalization"]
        assert described["applied"] == "by the file"
    found, (scale, zero) = stored_input(path, x)
    grid, values = model.get_layer("grid"), normalize(pixels, x)
    expected = array(grid(values)[0]).astype("float64") / scale + zero
    np.testing.assert_array_equal(found, np.rint(expected))
    again = pixels_of(reading.read(path)[1], values)
    np.testing.assert_array_equal(stored_input(path, again)[0], found)
    # And in float64, away from ties.
    if not callable(pixels):
        mean, std = (np.float64(value) for value in pixels)
        exact = (x - mean) / std / np.float64(np.float32(step))
        top = 2**bits - 1 if not signed else 2 ** (bits - 1) - 1
        exact = np.clip(exact, top - 2**bits + 1, top)
        clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
        assert clear.mean() > 0.4 or step == 2 / 255  # of which all are ties
        np.testing.assert_array_equal((found - zero)[clear], np.rint(exact)[clear])


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [to_unit, IMAGENET])
def test_whole_network(qat, pixels, tmp_path):
    path = tmp_path / "x.tflite"
    operators = repq_tf.export_tflite(qat, path, input_type="uint8", pixels=pixels)
    plain = repq_tf.export_tflite(qat, tmp_path / "plain.tflite")
    assert operators.pop("CAST") == operators.pop("GATHER") == 1
    operators["ADD"] -= pixels is IMAGENET  # the offset of each channel's table
    assert operators == plain
    (found,), entry, (end,) = run(path, PIXELS)
    assert (entry["dtype"], entry["quantization"]) == (np.uint8, (0.0, 0))
    scale, zero = end["quantization"]
    expected = array(qat(normalize(pixels, PIXELS))).astype("float64") / scale
    np.testing.assert_array_equal(found.astype(int) - zero, np.rint(expected))
    assert len(np.unique(found)) > 20


def test_parity(qat, tmp_path):
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(qat, path, input_type="uint8", pixels=IMAGENET)
    assert_exact(repq_tf.check_parity(qat, path, normalize(IMAGENET, PIXELS)))
    with pytest.raises(
        ValueError, match="images must be pixels, normalised .*round them.*no pixel becomes"
    ):
        repq_tf.check_parity(qat, path, images(2))


def test_pixels_that_are_the_grid_need_no_table(tmp_path):
    """`(pixel - 128) / 128` on a grid of step 1/128: the integers are the pixels."""
    path, model = tmp_path / "x.tflite", with_step(1 / 128)
    operators = repq_tf.export_tflite(model, path, input_type="uint8", pixels=(128, 128))
    assert operators == {"QUANTIZE": 1, "CONV_2D": 1}
    x = np.arange(256, dtype="uint8").reshape(1, 16, 16, 1).repeat(3, axis=-1)
    (found,), _, (end,) = run(path, x)
    expected = array(model((x.astype("float32") - 128) / 128)) / np.float32(
        end["quantization"][0]
    )
    np.testing.assert_array_equal(found, np.rint(expected))
    normalization = repq_tf.export_metadata(path, pixels=(128, 128))["normalization"]
    assert normalization["applied"] == "by the file"
    repq_tf.export_c_array(path, tmp_path / "x.h")


@pytest.mark.slow
def test_metadata_says_that_the_file_normalises(qat, tmp_path):
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(qat, path, input_type="uint8", pixels=(127.5, 127.5))
    found = repq_tf.export_metadata(path, pixels=(127.5, 127.5))
    assert found["inputs"][0]["type"] == "uint8" and found["inputs"][0]["scale"] is None
    assert found["normalization"]["applied"] == "by the file"
    assert found["normalization"]["mean"] == found["normalization"]["std"] == 127.5
    repq_tf.export_tflite(qat, path, input_type="uint8")  # on the grid of the int8 input
    found = repq_tf.export_metadata(path, pixels=(127.5, 127.5))
    assert found["normalization"]["applied"] == "by the caller"


def test_microcontrollers_take_no_pixels(qat, tmp_path):
    path = tmp_path / "x.tflite"
    repq_tf.export_tflite(qat, path, input_type="uint8", pixels=(127.5, 127.5))
    with pytest.raises(
        ValueError, match="takes pixels, by a CAST of uint8 .*input_type='int8'"
    ):
        repq_tf.export_c_array(path, tmp_path / "x.h")


@pytest.mark.parametrize(
    "pixels",
    [1, (1,), (1, 0), (1, -1), (1, float("nan")), ((1, 2), 1), "a", (1, 2, 3)]
    + [lambda x: x[..., 0], lambda x: x * np.nan],
)
def test_bad_pixels(qat, pixels, tmp_path):
    with pytest.raises(ValueError, match="pixels.* must .*Received"):
        repq_tf.export_tflite(qat, tmp_path / "x", input_type="uint8", pixels=pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_pixels_are_uint8(qat, kind, tmp_path):
    with pytest.raises(ValueError, match=f"pixels goes with input_type='uint8'.*'{kind}'"):
        repq_tf.export_tflite(qat, tmp_path / "x", input_type=kind, pixels=(0, 255))


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True)])
def test_metadata_refuses_another_normalization_than_the_files(bits, signed, tmp_path):
    path, pixels = tmp_path / "x.tflite", np.array([[127.5], [60.0]])
    repq_tf.export_tflite(
        with_step(0.3, bits, signed), path, input_type="uint8", pixels=tuple(pixels)
    )
    found = repq_tf.export_metadata(path, pixels=pixels)["normalization"]  # an array is fine
    assert (found["applied"], found["mean"], found["std"]) == ("by the file", [127.5], [60])
    for other in ((127.5, 127.5), (100, 60), IMAGENET):
        with pytest.raises(ValueError, match="pixels must be the normalization.*Received"):
            repq_tf.export_metadata(path, pixels=other)


def test_a_table_of_the_network_is_none_of_pixels(tmp_path):
    def function(x):
        return keras.layers.Conv2D(3, 3)(keras.layers.Activation("softplus")(x))

    qat = quantize(network(function))
    repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", images(8)))
    repq_tf.export_c_array(tmp_path / "x.tflite", tmp_path / "x.h")
