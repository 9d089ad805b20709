"""Every operator in an integer file that computes exactly what the model computes."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from tests.deployment.files import TYPES, Convolution, assert_exact, parity, read, run
from tests.marks import slow
from tests.quantization.networks import (
    SHAPE,
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
    quantizer_of,
    residual,
    settle,
    train,
)

X = images(64)


def conv(name, filters=6, size=3, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def depthwise(name, **options):
    return layers.DepthwiseConv2D(3, name=name, **options)


def strides_and_pads(x):
    x = conv("a", strides=2, padding="same", activation="relu")(x)
    x = ConvBNBlock(6, 3, padding=((0, 1), (2, 0)), strides=(1, 2), name="b")(x)
    x = ACBlock(6, 3, padding=1, strides=2, activation="relu6", name="c")(x)
    return RepVGGBlock(6, 3, padding=(2, 1), activation="relu", name="d")(x)


def groups(x):
    x = conv("g", 8, padding="same", activation="relu")(x)
    x = conv("h", 4, groups=4)(x)
    x = RepVGGBlock(4, groups=2, activation="relu", name="v")(x)
    return conv("w", 8, groups=4, activation="relu")(x)  # depthwise, multiplier 2


def depthwise_convolutions(x):
    x = depthwise("a", padding="same", strides=2, activation="relu6")(x)
    x = depthwise("b", depth_multiplier=3, activation="relu")(x)
    x = layers.BatchNormalization(name="c_bn")(depthwise("c", use_bias=False)(x))
    return conv("d", 4, 1)(layers.ReLU(name="c_relu")(x))


def one_channel(x):
    x = conv("a", 1)(x)
    x = depthwise("b", depth_multiplier=4)(x)
    return conv("c", 2, 1)(x)


def dense(x):
    x = layers.Flatten(name="flat")(conv("a", 4, strides=3)(x))
    x = layers.Dense(9, activation="relu", name="f1")(x)
    x = layers.Dense(7, activation="relu6", name="f2")(layers.Dropout(0.3, name="drop")(x))
    return layers.Dense(5, name="f3")(x)


def softmaxes(x):
    x = layers.Softmax(name="s1")(conv("a", 5)(x))
    x = layers.Flatten(name="flat")(conv("b", 3, 1, strides=2)(x))
    return layers.Dense(6, activation="softmax", name="f")(x)


def unit_vectors(x):
    x = keras.ops.normalize(conv("a", 5, activation="relu")(x))  # some are zeros
    x = layers.Flatten(name="flat")(conv("b", 3, strides=2)(x))
    return layers.UnitNormalization(name="u")(layers.Dense(9, name="f")(x))


def sums(x):
    a = conv("a", activation="relu", padding="same")(x)
    b = conv("b", padding="same")(a)
    x = layers.Add(name="plain")([a, b])
    y = layers.ReLU(name="relu")(
        layers.Add(name="with_relu")([conv("c", padding="same")(x), x])
    )
    z = layers.ReLU(6.0, name="relu6")(layers.Add(name="with_relu6")([y, b]))
    return layers.Add(name="twice")([z, z])


def broadcast_sum(x):
    x = conv("a")(x)
    mean = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    x = layers.Add(name="sum")([x, conv("gate", 6, 1)(mean)])
    return conv("b", 3, 1)(x)


def concatenations(x):
    a = conv("a", padding="same", activation="relu")(x)
    b = conv("b", padding="same")(a)
    s = layers.ReLU(name="s_relu")(layers.Add(name="s")([a, b]))
    x = layers.Concatenate(name="cat")([layers.MaxPooling2D(1, name="p")(a), b, s, x])
    x = conv("c", 4, 1)(x)
    rows = layers.Concatenate(axis=1, name="rows")([x, conv("d", 4, 1)(x)])
    return conv("e", 3, 1)(rows)


def max_pools(x):
    x = layers.MaxPooling2D(2, name="p1")(conv("a", padding="same")(x))
    x = layers.MaxPooling2D(3, strides=1, padding="same", name="p2")(conv("b", 4, 2)(x))
    return conv("c", 3, 1)(x)


def means(x):
    x = conv("a", activation="relu")(x)
    return layers.Dense(4, name="f")(layers.GlobalAveragePooling2D(name="m")(conv("b")(x)))


def mean_of_one_pixel(x):
    x = layers.GlobalAveragePooling2D(name="m")(conv("a", 4, 10, activation="relu")(x))
    return layers.Dense(3, name="f")(x)


def shapes(x):
    x = layers.Reshape((32, 2, 6), name="r1")(conv("a")(x))
    x = layers.ZeroPadding2D(((1, 0), (2, 1)), name="z")(x)
    x = layers.Reshape((-1,), name="r2")(conv("b", 4, 2, activation="relu")(x))
    return layers.Dense(3, name="f")(layers.Flatten(name="flat")(x))


def pad_of_signed(x):
    """The zeros have to be the integer of zero."""
    x = layers.ZeroPadding2D(2, name="z1")(x)
    x = layers.ZeroPadding2D(1, name="z2")(conv("a")(x))
    return conv("b", 3)(x)


def relu_after_pool(x):
    x = layers.ReLU(name="r")(layers.MaxPooling2D(2, name="p")(conv("a")(x)))
    return conv("b", 3)(x)


NETWORKS = [
    *(strides_and_pads, groups, depthwise_convolutions, one_channel, dense, softmaxes, sums),
    *(broadcast_sum, concatenations, max_pools, means, mean_of_one_pixel, shapes),
    *(pad_of_signed, relu_after_pool, residual, unit_vectors),
]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("function", NETWORKS, ids=lambda f: f.__name__)
def test_nothing_differs(function, bits, tmp_path):
    # Bits of every layer, the first and the last ones too.
    rules = {"*": {"weight_bits": bits, "activation_bits": bits}}
    qat = quantize(network(function), rules={} if bits == 8 else rules)
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    assert report.images == len(X)
    # No operator computes in floating point, and no tensor holds floats.
    model = read(tmp_path / "x.tflite")
    kinds = {TYPES[tensor.type] for tensor in model.subgraphs[0].tensors}
    assert kinds <= {"INT8", "INT32"}
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(operators) or bits == 4
    # Not by comparing nothing: every tensor takes many values.
    for row in report.layers:
        assert row.outputs >= len(X)
    (y,), entry, (end,) = run_on_grid(qat, tmp_path / "x.tflite", X)
    scale, zero = end["quantization"]
    np.testing.assert_allclose(
        (y.astype("float64") - zero) * scale, array(qat(X)), rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(y)) > min(bits, 6)


def run_on_grid(qat, path, x):
    layer = qat.get_layer("image_quantize")
    step, bits = float(layer.step), layer.bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if layer.signed else (0, 2**bits - 1)
    levels = np.rint(np.clip(x / np.float32(step), low, high))
    return run(path, (levels + 127 - high).astype(np.int8))


@pytest.mark.slow
def test_sequential(tmp_path):
    keras.utils.set_random_seed(0)
    stages = [
        *(layers.ReLU(6.0), layers.MaxPooling2D(2), ACBlock(8, activation="relu")),
        *(layers.Dropout(0.2), layers.Flatten(), layers.Dense(5), layers.Softmax()),
    ]
    model = keras.Sequential(
        [keras.Input(SHAPE), conv("c", use_bias=False), layers.BatchNormalization(), *stages]
    )
    operators, report = parity(quantize(settle(model)), tmp_path / "x.tflite", X)
    assert_exact(report)
    names = ("CONV_2D", "MAX_POOL_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX")
    assert operators == {**dict.fromkeys(names, 1), "CONV_2D": 2}


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_mixed_bits(per_channel, tmp_path):
    rules = {
        "image": {"activation_bits": 6},
        "stem": {"weight_bits": 5, "activation_bits": 7},
        "ac": {"weight_bits": 3, "activation_bits": 2},
        "vgg": {"weight_bits": 2, "activation_bits": 5},
        "add": {"activation_bits": 3},
        "mean": {"activation_bits": 6},
        "logits": {"weight_bits": 7, "activation_bits": 4},
    }
    qat = quantize(network(residual), rules=rules, per_channel=per_channel)
    train(qat, images())
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    model = read(tmp_path / "x.tflite")
    for name in ("stem", "ac", "vgg", "logits"):
        found = Convolution(model, name)
        bits = rules[name]["weight_bits"]
        # A negative gain turns -2^(b-1) into 2^(b-1).
        assert np.abs(found.data(found.kernel).astype(int)).max() <= 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [8, *map(slow, (7, 6, 5, 4, 3)), 2])
def test_every_bit_width(bits, tmp_path):
    def function(x):
        x = conv("a", 4, padding="same")(x)  # signed
        x = layers.Add(name="s")([x, conv("b", 4, padding="same", activation="relu")(x)])
        return layers.GlobalAveragePooling2D(name="m")(conv("c", 3)(x))

    rules = {"*": {"weight_bits": bits, "activation_bits": bits}}
    qat = quantize(network(function), rules=rules)
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)


# What stands in the file.


def every_kind(x):
    x = conv("first", padding="same", activation="relu")(x)
    x = depthwise("deep", activation="relu")(x)
    x = ACBlock(8, strides=2, activation="relu", name="ac")(x)
    x = conv("grouped", 8, groups=2, activation="relu")(x)
    x = layers.Flatten(name="flat")(x)
    return layers.Dense(5, name="f")(layers.Dense(6, activation="relu", name="hidden")(x))


KINDS = {
    "first": ("CONV_2D", 0),
    "deep": ("DEPTHWISE_CONV_2D", 3),
    "ac": ("CONV_2D", 0),
    "grouped": ("CONV_2D", 0),
    "hidden": ("FULLY_CONNECTED", 0),
    "f": ("FULLY_CONNECTED", 0),
}
SOURCES = dict(zip(KINDS, ["image_quantize", *(f"{n}_quantize" for n in KINDS)], strict=False))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    qat = quantize(network(every_kind), bits=5)
    path = tmp_path_factory.mktemp("file") / "x.tflite"
    repq_tf.export_tflite(qat, path)
    return qat, read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_weights_biases_and_scales(exported, name):
    qat, model = exported
    block, found = block_of(qat, name), Convolution(model, name)
    kind, axis = KINDS[name]
    assert found.name == kind
    step = qat.get_layer(SOURCES[name]).step
    integers, scale, bias, _ = map(array, block.integer_weights(step))
    # Weights: int8, one scale a channel, the model's own integers.
    assert TYPES[found.kernel.type] == "INT8"
    quantization = found.kernel.quantization
    assert quantization.quantizedDimension == axis
    np.testing.assert_array_equal(quantization.scale, scale.astype("float32"))
    assert len(quantization.scale) == block.filters > 1
    assert len(set(quantization.scale)) > 1 and not np.any(quantization.zeroPoint)
    kernel = found.data(found.kernel)
    if kind == "CONV_2D":
        kernel = kernel.transpose(1, 2, 3, 0)
    elif kind == "FULLY_CONNECTED":
        kernel = kernel.T
    np.testing.assert_array_equal(kernel.reshape(integers.shape), integers)
    # Biases: int32 on the grid of input times weights, and used.
    assert TYPES[found.bias.type] == "INT32"
    product = found.source.quantization.scale[0] * quantization.scale
    np.testing.assert_array_equal(found.bias.quantization.scale, product)
    np.testing.assert_array_equal(found.data(found.bias), bias)
    assert np.abs(bias).max() > 0
    np.testing.assert_array_equal(found.source.quantization.scale, [np.float32(step)])


@pytest.mark.slow
def test_activation_grids(exported):
    """8 bits fill the container; 5 bits end at its upper end, where it saturates."""
    qat, model = exported
    tensors = {t.name.decode(): t for t in model.subgraphs[0].tensors}
    zero_points = {"image": 0, "first": 96, "deep": 96, "ac": 96, "grouped": 96, "f": 0}
    for name, zero in zero_points.items():
        quantization = tensors[name].quantization
        step = array(quantizer_of(qat, name).step)
        np.testing.assert_array_equal(quantization.scale, [step])
        assert quantization.zeroPoint[0] == zero, name


@pytest.mark.parametrize("bits", [8, 4])
def test_negative_zero_and_tiny_gammas(bits, tmp_path):
    def function(x):
        x = ConvBNBlock(8, name="a")(x)
        x = ACBlock(8, activation="relu", name="b")(x)
        return conv("c", 3, 1)(x)

    qat = quantize(network(function), bits=bits)
    for name in ("a", "b"):
        gamma = array(block_of(qat, name).root.gamma).copy()
        gamma[:6] = (-0.7, 0.0, 1e-9, -1e-30, 1e-38, -2e-5)
        block_of(qat, name).root.gamma.assign(gamma)
        block_of(qat, name).root.beta.assign(np.linspace(-1, 1, 8))
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    found = Convolution(read(tmp_path / "x.tflite"), "a")
    scales = found.kernel.quantization.scale
    assert (scales > 0).all() and np.isfinite(scales).all()
    reference = array(block_of(qat, "a").weight_quantizer.step)
    integers = array(block_of(qat, "a").inner.merge().kernel)[..., 0] / reference[0]
    flipped = -np.rint(integers).ravel()
    assert np.mean(found.data(found.kernel)[0].ravel() == flipped) > 0.99


@pytest.mark.slow
def test_extreme_ratios_of_scales(tmp_path):
    """Steps far apart, as quantizers may learn them, within what the fast kernels take."""
    qat = quantize(network(residual))
    for name, factor in (
        ("vgg_quantize", 30),
        ("add", 0.2),
        ("mean", 100),
        ("stem_quantize", 3),
    ):
        quantizer = qat.get_layer(name).activation_quantizer
        quantizer.set_step(array(quantizer.step) * factor)
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)


def averages(x):
    x = layers.AveragePooling2D(2, name="p1")(conv("a", activation="relu")(x))
    return conv("b", 3, 1)(x)


def signed_averages(x):
    """Windows that hang over the border count only the pixels inside."""
    x = conv("b")(conv("a", activation="relu")(x))
    x = layers.AveragePooling2D((3, 2), (2, 1), padding="same", name="p1")(x)
    return conv("c", 3, 1)(x)


def of_the_image(x):
    """Pools and ReLUs that follow no convolution."""
    x = layers.AveragePooling2D(2, strides=1, name="p1")(x)
    x = layers.ReLU(6.0, name="r6")(layers.MaxPooling2D(2, name="p2")(x))
    return conv("c", 3, 1)(layers.Concatenate(name="cat")([x, conv("d", padding="same")(x)]))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    "function", [averages, signed_averages, of_the_image], ids=lambda f: f.__name__
)
def test_averages_and_activations_that_stand_alone(function, bits, tmp_path):
    """A mean of four integers is half way in a quarter of all cases."""
    qat = quantize(network(function), rules={"*": {"activation_bits": bits}})
    _, report = parity(qat, tmp_path / "x.tflite", 3 * X)
    assert_exact(report)


NO_BIAS = {
    "without a bias": {"use_bias": False},
    "with biases of zero": {"bias_initializer": "zeros"},
}


@pytest.mark.parametrize("options", NO_BIAS.values(), ids=NO_BIAS.keys())
def test_dense_layers_without_biases(options, tmp_path):
    x = keras.Input(SHAPE, name="image")
    y = layers.Dense(3, name="f", **options)(layers.Flatten()(conv("a", 2)(x)))
    _, report = parity(quantize(keras.Model(x, y)), tmp_path / "x.tflite", X)
    assert_exact(report)


def alone(x):
    """The convolution is read before and after its ReLU."""
    x = conv("a", padding="same")(x)
    y = layers.ReLU(name="r")(x)
    return layers.Add(name="s")([conv("b")(x), conv("c")(y)])


def global_max(x):
    return layers.Dense(3, name="f")(layers.GlobalMaxPooling2D(name="g")(conv("a")(x)))


def relu_of_the_input(x):
    return conv("a", 3)(layers.ReLU(name="r")(x))


UNSCALED = [alone, global_max, relu_of_the_input]


@pytest.mark.slow
@pytest.mark.parametrize("function", UNSCALED, ids=lambda f: f.__name__)
def test_what_quantize_accepts_can_be_exported(function, tmp_path):
    _, report = parity(quantize(network(function)), tmp_path / "x.tflite", X)
    assert_exact(report)


def test_wide_sums_are_exact(tmp_path):
    """Accumulators beyond 2^24, which float32 cannot count to.

    Known: the model adds in float32, so a few outputs in ten thousand differ by one.
    """
    x = np.random.default_rng(0).uniform(0, 1, (64, 3, 3, 512)).astype("float32")
    inputs = keras.Input(x.shape[1:], name="image")
    uniform = keras.initializers.RandomUniform(0.5, 1, seed=0)
    y = conv("a", 16, 3, kernel_initializer=uniform, activation="relu")(inputs)
    qat = quantize(keras.Model(inputs, y), calibration_data=x[:16])
    _, report = parity(qat, tmp_path / "x.tflite", x)
    share = report.layers[0].different / report.layers[0].outputs
    print(f"wide sums: {share:.3%} differ")
    assert report.largest_difference <= 1 and share < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("parts", [100.4, 100.6, 14.7, 20.2])
def test_the_6_of_a_relu6_between_two_sums(parts, tmp_path):
    """The runtime clamps what it has rescaled; the sum next to 6 may round to another level."""

    def function(x):
        x = conv("a", activation="relu6", kernel_initializer="ones")(x)
        return conv("b", 2, 1)(x)

    qat = quantize(network(function), rules={"a": {"per_channel": False}})
    qat.get_layer("image_quantize").activation_quantizer.set_step(0.05)
    block_of(qat, "a").weight_quantizer.set_step(1.7)
    quantizer_of(qat, "a").activation_quantizer.set_step(6 / parts)
    step = array(quantizer_of(qat, "a").step)
    inner = keras.Model(qat.input, quantizer_of(qat, "a").output[0])
    assert array(inner(4 * X)).max() == np.float32(np.rint(6 / step) * step)
    _, report = parity(qat, tmp_path / "x.tflite", 4 * X)
    assert_exact(report)


ROUNDED = {
    "average": lambda: layers.AveragePooling2D(2, name="next"),
    "maximum, average": lambda: keras.Sequential(
        [layers.MaxPooling2D(2, name="most"), layers.AveragePooling2D(2, name="next")]
    ),
    "leaky relu": lambda: layers.LeakyReLU(name="next"),
    "steep leaky relu": lambda: layers.LeakyReLU(negative_slope=1.5, name="next"),
}


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layer", ROUNDED.values(), ids=ROUNDED.keys())
def test_what_is_rounded_to_the_grid_of_a_sum(layer, bits, tmp_path):
    """A sum has a quantizer of its own, an average none: they share one."""

    def function(x):
        x = conv("a", padding="same")(x)
        x = layers.Add(name="sum")([x, conv("b", padding="same")(x)])
        return conv("c", 3, 1)(layer()(x))

    qat = quantize(network(function), rules={"*": {"activation_bits": bits}})
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
