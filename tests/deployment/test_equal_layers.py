"""Layers that compute the same of one tensor, which the converter shares or would share."""

import keras
import pytest

from repq_tf.layers import ConvBNBlock, SqueezeExcite
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import images, layers, quantize

X = images(16)


def twice(layer):
    """A layer, and another beside it that comes back to the sum."""
    return lambda y: layers.Add()([ConvBNBlock(4)(layer(y)), layer(y)])


def convolutions(y):
    initializer = keras.initializers.GlorotUniform(seed=0)
    options = {"padding": "same", "kernel_initializer": initializer}
    a = layers.Conv2D(4, 3, **options)(y)
    b = layers.Conv2D(4, 3, activation="relu", bias_initializer="ones", **options)(y)
    c = layers.Conv2D(4, 3, bias_initializer="ones", **options)(y)
    return layers.Add()([layers.Add()([a, b]), c])


def heads(y):
    y = layers.GlobalAveragePooling2D()(y)
    return [
        layers.Dense(4, kernel_initializer="zeros", bias_initializer=bias)(y)
        for bias in ("zeros", "ones", "ones")
    ]


NETWORKS = {
    "average poolings": twice(lambda y: layers.AveragePooling2D(2)(y)),
    "max poolings": twice(lambda y: layers.MaxPooling2D(2)(y)),
    "leaky": twice(lambda y: layers.LeakyReLU(0.2)(y)),
    "prelu": twice(lambda y: layers.PReLU(shared_axes=[1, 2])(y)),
    "sigmoid": twice(lambda y: layers.Activation("sigmoid")(y)),
    "mean beside a gate": lambda y: [
        SqueezeExcite(2)(y),
        layers.GlobalAveragePooling2D(keepdims=True)(y),
    ],
    "means at the end": lambda y: [layers.GlobalAveragePooling2D()(y) for _ in range(2)],
    "convolutions": convolutions,
    "heads": heads,
}


# The converter leaves a mean that has two grids in floating point, which is refused.
REFUSED = ("mean beside a gate", 4)
CASES = [(name, bits) for name in NETWORKS for bits in (8, 4) if (name, bits) != REFUSED]


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_every_layer_is_found_in_the_file(name, bits, tmp_path):
    inputs = keras.Input(X.shape[1:])
    outputs = NETWORKS[name](ConvBNBlock(4, activation="relu")(inputs))
    model = quantize(keras.Model(inputs, outputs), bits=bits, calibration_data=X)
    _, report = parity(model, tmp_path / "x.tflite", X)
    assert_exact(report)
    assert len({layer.name for layer in report.layers}) == len(report.layers) > 2
