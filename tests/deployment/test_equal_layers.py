"""Layers that compute the same of one tensor."""

import collections

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ConvBNBlock
from tests.deployment.files import (
    OPERATORS,
    Convolution,
    assert_exact,
    parity,
    read,
    run,
    write,
)
from tests.quantization.networks import array, images, layers, quantize

X = images(16)


def float_model(function):
    inputs = keras.Input(X.shape[1:])
    return keras.Model(inputs, function(ConvBNBlock(4, activation="relu")(inputs)))


def quantized(function, bits):
    return quantize(float_model(function), bits=bits, calibration_data=X)


def twice(layer):
    """A layer, and another beside it that comes back to the sum."""
    return lambda y: layers.Add()([ConvBNBlock(4, name="reader")(layer(y)), layer(y)])


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
    "convolutions": convolutions,
    "semicolons": lambda y: layers.Add(name="s;t")([ConvBNBlock(4, name="u;v")(y), y]),
    "heads": heads,
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("function", NETWORKS.values(), ids=NETWORKS)
def test_every_layer_is_found_in_the_file(function, bits, tmp_path):
    model = quantized(function, bits)
    _, report = parity(model, tmp_path / "x.tflite", X)
    assert_exact(report)
    assert len({layer.name for layer in report.layers}) == len(report.layers) > 2


def test_what_reads_a_shared_tensor_is_diagnosed(tmp_path):
    """The parts of a file end at it, whatever its name."""
    path = tmp_path / "x.tflite"
    model = quantized(twice(lambda y: layers.AveragePooling2D(2)(y)), 8)
    repq_tf.export_tflite(model, path)
    content = read(path)
    convolution = Convolution(content, "reader")
    kernel = convolution.data(convolution.kernel).copy()
    kernel[0, 0, 0, 0] ^= 3
    convolution.set_data(convolution.kernel, kernel)
    write(content, path)
    (cause,) = repq_tf.check_parity(model, path, X).causes
    assert (cause.kind, cause.layer) == ("kernel", "reader")


def branches(y):
    """As in NASNet's cells: everything begins with a ReLU of the same tensor."""
    y = layers.Activation("tanh")(y)

    def branch():
        x = layers.ZeroPadding2D(1)(layers.ReLU()(y))
        return layers.Add()([layers.Conv2D(4, 3)(x), layers.MaxPooling2D(3, 1)(x)])

    return layers.Add()([branch(), layers.Add()([branch(), branch()])])


def test_equal_operators_are_computed_once(tmp_path):
    path, float_path = tmp_path / "x.tflite", tmp_path / "float.tflite"
    operators, report = parity(quantized(branches, 8), path, X)
    assert_exact(report)
    model = float_model(branches)
    repq_tf.export_tflite_float(model, float_path)
    for found in (operators, operators_of(float_path)):
        assert (found["RELU"], found["PAD"], found["MAX_POOL_2D"]) == (1, 1, 1)
        assert found["CONV_2D"] == 4
    (got,), _, _ = run(float_path, X)
    np.testing.assert_allclose(got, array(repq_tf.merge(model)(X)), atol=1e-5)


def operators_of(path):
    content = read(path)
    codes = [OPERATORS[code.builtinCode] for code in content.operatorCodes]
    return collections.Counter(codes[op.opcodeIndex] for op in content.subgraphs[0].operators)


def outputs(y):
    return [layers.Flatten(name=name)(layers.ReLU()(y)) for name in ("one", "other")]


def test_outputs_have_tensors_of_their_own(tmp_path):
    model, path = quantized(outputs, 8), tmp_path / "x.tflite"
    operators, report = parity(model, path, X)
    assert_exact(report)
    ends = run(path, np.zeros((1, 10, 10, 3), "int8"))[2]
    assert [end["name"] for end in ends] == ["one", "other"]
    assert operators["RESHAPE"] == 2


def adds(y):
    a, b = (ConvBNBlock(4)(y) for _ in range(2))
    relu = layers.ReLU(name="second")
    return [layers.Add(name="first")([a, b]), relu(layers.Add()([b, a]))]


def gates(y):
    first = layers.Activation("sigmoid")(y)
    products = [layers.Multiply(name="first")([y, first])]
    return [*products, layers.Multiply(name="second")([y, layers.Activation("sigmoid")(y)])]


def means(y):
    first = layers.GlobalAveragePooling2D(keepdims=True, name="first")(y)
    return [first, layers.GlobalAveragePooling2D(keepdims=True, name="second")(y)]


@pytest.mark.parametrize("function", [adds, gates, means])
def test_equal_layers_may_lie_on_grids_of_their_own(function, tmp_path):
    model = quantized(function, 8)
    first, second = (model.get_layer(name).activation_quantizer for name in ("first", "second"))
    second.set_step(first.step * 1.5)
    _, report = parity(model, tmp_path / "x.tflite", X)
    assert_exact(report)
