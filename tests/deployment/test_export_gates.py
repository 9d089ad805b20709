"""Sigmoids, products and what is made of them: squeeze and excite, silu, hard-swish."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ConvBlock, ConvBNBlock, MobileOneBlock, SqueezeExcite
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import array, images, layers, network, quantize, train

X = images(32)


def conv(name, filters=6, size=1, **options):
    return layers.Conv2D(filters, size, padding="same", name=name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["sigmoid", "hard_sigmoid", "silu", "hard_silu"])
def test_every_input_level(function, tmp_path):
    """Of every grid, at steps from fine to coarse."""
    inputs = keras.Input((16, 16, 1), name="image")
    model = keras.Model(inputs, layers.Activation(function, name="f")(inputs))
    for bits, low, steps in (
        (8, -128, (0.003, 0.0471, 0.6)),
        (8, 0, (0.031,)),
        (4, -8, (0.7,)),
    ):
        levels = low + np.arange(256).reshape(1, 16, 16, 1) % 2**bits
        rules = {"*": {"activation_bits": bits}}
        for step in np.float32(steps):
            x = (levels * step).astype("float32")
            qat = quantize(model, rules=rules, calibration_data=x)
            qat.get_layer("image_quantize").activation_quantizer.set_step(step)
            _, report = parity(qat, tmp_path / "x.tflite", x)
            assert_exact(report)
            error = np.abs(array(qat(x)) - array(model(x))).max()
            assert error < 2 * max(qat.layers[-1].step, 1 / 255)


def squeeze_and_excite(x):
    """As MobileOne and RepVGG have it."""
    x = ConvBNBlock(8, activation="relu", name="a")(x)
    x = layers.ReLU(name="r1")(SqueezeExcite(2, name="se1")(MobileOneBlock(8, name="b")(x)))
    x = SqueezeExcite(3, name="se2")(ConvBlock(8, activation="relu", name="c")(x))
    return layers.Dense(5, name="d")(layers.GlobalAveragePooling2D(name="m")(x))


def hard_gate(x, name):
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(x)
    y = conv(f"{name}_down", 3, activation="relu")(y)
    y = conv(f"{name}_up", x.shape[-1], activation="hard_sigmoid")(y)
    return layers.Multiply(name=name)([x, y])


def bottleneck(x, name, activation, squeeze):
    """A residual block of MobileNetV3 (arXiv 1905.02244)."""
    y = ConvBNBlock(12, 1, activation=activation, name=f"{name}_expand")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depth")(y)
    y = layers.BatchNormalization(name=f"{name}_bn")(y)
    y = layers.Activation(activation, name=f"{name}_act")(y)
    y = hard_gate(y, f"{name}_se") if squeeze else y
    return layers.Add(name=name)([x, ConvBNBlock(8, 1, name=f"{name}_project")(y)])


def mobilenet_v3(x):
    x = ConvBNBlock(8, strides=2, activation="hard_silu", name="stem")(x)
    x = bottleneck(x, "one", "relu", True)
    x = bottleneck(x, "two", "hard_silu", True)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    x = conv("head", 12, activation="hard_swish")(x)
    return layers.Dense(5, name="logits")(layers.Flatten()(x))


def products(x):
    """Of all signs and shapes, with what fuses into them."""
    a, b = conv("a")(x), conv("b", activation="relu")(x)
    pixels = conv("p", 1, activation="sigmoid")(x)
    x = layers.Multiply(name="signed")([a, b])
    x = layers.ReLU(6.0, name="r6")(layers.Multiply(name="fused")([x, a]))
    x = layers.Multiply(name="square")([x, x])
    x = layers.Multiply(name="masked")([pixels, x])
    x = layers.Flatten()(conv("c", 2, 3, strides=3)(x))
    gate = layers.Dense(32, activation="sigmoid", name="g")(x)
    return layers.Multiply(name="last")([layers.Dense(32, name="f")(x), gate])


def outputs_of_gates(x):
    x = conv("a", activation="silu")(x)
    y = layers.Activation("sigmoid", name="t")(conv("c", activation="relu")(x))
    x = layers.Dropout(0.2)(layers.Activation("sigmoid", name="s")(x))
    x = layers.Concatenate(name="both")([x, y])
    x = layers.MaxPooling2D(2, name="p")(x)
    return conv("b", 3, activation="sigmoid")(x)


def pooled_gates(x):
    """What is rounded to the grid of a gate, or of a product, must keep it."""
    a = layers.AveragePooling2D(2, name="pa")(conv("a", activation="sigmoid")(x))
    b = layers.AveragePooling2D(2, name="pb")(conv("b", activation="hard_sigmoid")(x))
    c = layers.AveragePooling2D(2, name="pc")(conv("c", activation="silu")(x))
    return layers.Concatenate(name="cat")([c, layers.Multiply(name="m")([a, b])])


def fixed_scales(x):
    a, b = conv("a", activation="sigmoid")(x), conv("b", activation="hard_sigmoid")(x)
    c = layers.Concatenate(name="both")([a, b, conv("c", activation="tanh")(x)])
    return layers.Concatenate()([conv("d")(c), layers.Softmax()(conv("e")(c)), x])


NETWORKS = [
    squeeze_and_excite,
    mobilenet_v3,
    products,
    outputs_of_gates,
    pooled_gates,
    fixed_scales,
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("function", NETWORKS, ids=lambda f: f.__name__)
def test_nothing_differs(function, bits, tmp_path):
    rules = {"*": {"activation_bits": bits}} if bits == 4 else {}
    qat = quantize(network(function), bits=bits, rules=rules)
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    # The runtime has no fast kernels of these.
    assert not {"HARD_SWISH", "MAXIMUM", "MINIMUM", "RELU", "RELU6"} & set(operators)


@pytest.mark.slow
def test_operators_of_squeeze_and_excite(tmp_path):
    """Nothing is reshaped, and the ReLU is fused into the product."""
    qat = quantize(network(squeeze_and_excite))
    operators, _ = parity(qat, tmp_path / "x.tflite", X)
    expected = {"CONV_2D": 7, "MEAN": 3, "LOGISTIC": 2, "MUL": 2, "FULLY_CONNECTED": 1}
    assert operators == expected


@pytest.mark.slow
@pytest.mark.parametrize("function", [squeeze_and_excite, mobilenet_v3])
def test_the_function_is_taken_over_and_trains(function, tmp_path):
    model = network(function)
    qat = quantize(model)
    want, got = array(model(X)), array(qat(X))
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    merged = repq_tf.merge(qat)
    np.testing.assert_allclose(array(merged(X)), got, atol=0.02 * np.abs(want).max())
    # Not the restored batch norms' inner shifts, which cancel.
    learned = [v for v in qat.trainable_variables if not v.path.endswith("beta")]
    before = [array(variable) for variable in learned]
    train(qat, X)
    pairs = zip(before, learned, strict=True)
    assert not [v.path for old, v in pairs if (array(v) == old).all()]
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    qat.save(tmp_path / "qat.keras")
    loaded = keras.saving.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(array(loaded(X)), array(qat(X)))


@pytest.mark.slow(10)
def test_mobileone_s4(tmp_path):
    model = repq_tf.models.mobileone_s4(classes=4, input_shape=(8, 8, 3), width=0.03)
    x = images(8, (8, 8, 3))
    qat = quantize(model, bits=4, calibration_data=x)
    operators, report = parity(qat, tmp_path / "x.tflite", x)
    assert_exact(report)
    # Six pairs of two blocks.
    assert operators["LOGISTIC"] == operators["MUL"] == 12 and "RELU" not in operators
