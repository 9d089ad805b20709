"""Activations that are operators of the integer file, not parts of a convolution."""

import keras
import numpy as np
import pytest

from tests.deployment.files import TYPES, assert_exact, parity, read
from tests.quantization.networks import images, layers, network, quantize

X = images(32)


def conv(name, filters=6, size=3, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def prelu(name, **options):
    start = keras.initializers.RandomUniform(-0.6, 1.4, seed=3)
    return layers.PReLU(start, name=name, **options)


def pixels(name):
    return prelu(name, shared_axes=[1, 2])


def prelu_of_a_convolution(x):
    return conv("b", 4)(pixels("p")(conv("a", padding="same")(x)))


def prelu_of_the_image(x):
    return conv("b", 4)(pixels("p")(x))


def prelu_of_a_sum(x):
    x = conv("a", padding="same")(x)
    x = layers.Add()([x, conv("c", padding="same")(x)])  # named as TensorFlow names its own
    return conv("b", 4)(pixels("p")(x))


def prelu_of_a_pool(x):
    return conv("b", 4)(pixels("p")(layers.MaxPooling2D(2)(conv("a")(x))))


def prelu_read_twice(x):
    x = pixels("p")(conv("a", padding="same")(x))
    return layers.Add(name="s")([x, conv("b", padding="same")(x)])


def prelu_of_features(x):
    x = layers.Flatten()(conv("a", 2, strides=3)(x))
    return layers.Dense(4, name="g")(prelu("p")(layers.Dense(7, name="f")(x)))


def prelu_of_rows(x):
    """Rank 3, as in the heads of detectors."""
    x = layers.Reshape((-1, 6), name="rows")(conv("conv")(x))
    return prelu("prelu", shared_axes=[1])(x)


def one_alpha(x):
    return conv("b", 4)(prelu("p", shared_axes=[1, 2, 3])(conv("a")(x)))


def leaky_relus(x):
    x = layers.LeakyReLU(0.1, name="l")(conv("a", padding="same")(x))
    x = layers.ReLU(negative_slope=0.37, name="r")(conv("b", 4)(x))
    x = layers.Activation("leaky_relu", name="t")(conv("c", 4)(x))
    return layers.LeakyReLU(0.001, name="tiny")(conv("d", 4)(x))


def steep_leaky_relu(x):
    """Negative levels leave the grid."""
    return conv("b", 4)(layers.LeakyReLU(1.7, name="l")(conv("a")(x)))


NETWORKS = [
    *(prelu_of_a_convolution, prelu_of_the_image, prelu_of_a_sum, prelu_of_a_pool),
    *(prelu_read_twice, prelu_of_features, prelu_of_rows, one_alpha),
    *(leaky_relus, steep_leaky_relu),
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("function", NETWORKS, ids=lambda f: f.__name__)
def test_nothing_differs(function, bits, tmp_path):
    rules = {"*": {"weight_bits": bits, "activation_bits": bits}}
    qat = quantize(network(function), rules={} if bits == 8 else rules)
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    kinds = {TYPES[t.type] for t in read(tmp_path / "x.tflite").subgraphs[0].tensors}
    assert kinds <= {"INT8", "INT32"}
    # Only what XNNPACK runs: the runtime's own kernels of these are slow.
    assert not {"PRELU", "RELU", "MAXIMUM", "MINIMUM"} & set(operators)


def test_of_two_bits_one_level_is_negative_and_the_error_is_less(tmp_path):
    def function(x):
        x = layers.PReLU("zeros", shared_axes=[1, 2], name="p")(conv("a", padding="same")(x))
        return conv("b", 4)(x)

    original = network(function)
    original.get_layer("p").alpha.assign(np.full((1, 1, 6), 0.25))
    qat = quantize(original, rules={"p": {"activation_bits": 2}})
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    (stored,) = (t for t in read(tmp_path / "x.tflite").subgraphs[0].tensors if t.name == b"p")
    assert list(stored.quantization.zeroPoint) == [125]  # so that 127 stands for level 2

    def layer_values(model):
        return np.ravel(keras.Model(model.input, model.get_layer("p").output)(X))

    def error(steps, low, high):
        levels = np.clip(np.rint(values / steps), low, high)
        return np.square(levels * steps - values).sum(axis=1)

    values, step = layer_values(original), float(qat.get_layer("p").step)
    steps = np.linspace(0.05, 2, 200)[:, None]
    assert error(steps, -1, 2).min() < 0.8 * error(steps, -2, 1).min()
    assert error(np.array([[step]]), -1, 2) < 1.1 * error(steps, -1, 2).min()


def test_mixed_bits_and_small_alphas(tmp_path):
    rules = {"a": {"activation_bits": 6}, "p": {"activation_bits": 3}}
    qat = quantize(network(prelu_of_a_convolution), rules=rules)
    qat.get_layer("p").alpha.assign([[[0.0, 1e-30, -2e-6, -0.004, 1.0, 5.0]]])
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)


@pytest.mark.slow
def test_extreme_ratios_of_scales(tmp_path):
    for factor in (1 / 30, 30):
        qat = quantize(network(prelu_of_a_convolution))
        quantizer = qat.get_layer("p").activation_quantizer
        quantizer.set_step(np.float32(quantizer.step) * factor)
        _, report = parity(qat, tmp_path / "x.tflite", X)
        assert_exact(report)


def test_a_prelu_is_five_fast_operators_after_training(tmp_path):
    qat = quantize(network(prelu_of_a_convolution), bits=4)
    alpha = np.array(qat.get_layer("p").alpha)
    targets = np.random.default_rng(0).normal(size=(len(X), 8, 8, 4))
    qat.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=True)
    qat.fit(X, targets, verbose=0)
    assert (np.array(qat.get_layer("p").alpha) != alpha).all()
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    expected = {"CONV_2D": 2, "QUANTIZE": 2, "DEPTHWISE_CONV_2D": 1, "ADD": 1}
    assert operators == expected
