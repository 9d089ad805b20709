"""Upsampling, and tensors that share one scale, in integer files."""

import keras
import numpy as np
import pytest

import repq_tf
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import images, layers, network, quantize

X = images(24)


def conv(name, filters=6, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", name=name, **options)


def up(size, interpolation):
    return layers.UpSampling2D(size, interpolation=interpolation, name="u")


RESIZES = [
    *((2, "nearest", 8), (2, "nearest", 3), ((5, 2), "nearest", 8)),
    *((2, "bilinear", 8), (2, "bilinear", 3), (3, "bilinear", 8), ((1, 4), "bilinear", 5)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "interpolation", "bits"), RESIZES)
def test_resizes(size, interpolation, bits, tmp_path):
    def function(x):
        return conv("b", 4)(up(size, interpolation)(conv("a")(x)))

    qat = quantize(network(function), rules={"*": {"activation_bits": bits}})
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    kind = {"nearest": "RESIZE_NEAREST_NEIGHBOR", "bilinear": "RESIZE_BILINEAR"}[interpolation]
    assert operators[kind] == 1


@pytest.mark.slow
def test_images_of_any_size_are_enlarged_by_repetition(tmp_path):
    def model(layer):
        inputs = keras.Input((None, None, 3), name="image")
        return quantize(keras.Model(inputs, layer(conv("a")(inputs))), calibration_data=X)

    qat = model(up(3, "nearest"))
    operators, report = parity(qat, tmp_path / "x.tflite", X[:, :7])
    assert_exact(report)
    assert operators == {"CONV_2D": 1, "CONCATENATION": 1, "DEPTH_TO_SPACE": 1}
    for refused in (up(2, "bilinear"), up((1, 2), "nearest")):
        qat = model(refused)
        with pytest.raises(ValueError, match="layer 'u': of images of any size"):
            repq_tf.export_tflite(qat, tmp_path / "y.tflite")
    repq_tf.export_tflite(qat, tmp_path / "y.tflite", input_shape=(10, 10, 3))
    assert_exact(repq_tf.check_parity(qat, tmp_path / "y.tflite", X))


# Operators round for one grid; where a concatenation prescribes it, a rescaling follows.


def sums_and_prelus(x):
    a = conv("a", activation="relu")(x)
    b = conv("b")(a)
    s = layers.Add(name="s")([a, b])
    t = layers.ReLU(name="t_relu")(layers.Add(name="t")([s, b]))
    start = keras.initializers.RandomUniform(-0.5, 1.2, seed=0)
    p = layers.PReLU(start, shared_axes=[1, 2], name="p")(b)
    x = layers.Concatenate(name="cat")([s, t, p, b])
    return conv("c", 4)(x)


def means(x):
    a = layers.GlobalAveragePooling2D(name="m")(conv("a", activation="relu")(x))
    b = layers.GlobalAveragePooling2D(name="n")(conv("b")(x))
    return layers.Dense(3, name="f")(layers.Concatenate(name="cat")([a, b]))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("function", [sums_and_prelus, means], ids=lambda f: f.__name__)
def test_concatenated_operators(function, bits, tmp_path):
    qat = quantize(network(function), rules={"*": {"activation_bits": bits}})
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    for name in ("s", "t", "p", "m", "n"):
        if name in [layer.name for layer in qat.layers]:
            assert qat.get_layer(name).bits == 8
    assert np.mean([row.outputs for row in report.layers]) > 10
