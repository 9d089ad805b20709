"""`merge`: plain Keras layers that compute what the model computes."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm, Convolution, Identity, Sum
from repq_tf.layers import ACBlock, ConvBlock, ConvBNBlock, DenseBlock, Quantize, RepVGGBlock
from tests.quantization.networks import (
    SHAPE,
    array,
    images,
    layers,
    network,
    quantize,
    relative,
    residual,
    settle,
    train,
)

X = images(8)
BLOCKS = [ACBlock, RepVGGBlock, ConvBNBlock, ConvBlock]
VARIANTS = {
    "same": {},
    "same, stride 2": {"strides": 2},
    "stride (1, 2)": {"strides": (1, 2)},
    "valid, stride 2": {"padding": "valid", "strides": 2},
    "padding 1, stride 2": {"padding": 1, "strides": 2},
    "padding ((0, 2), (1, 0))": {"padding": ((0, 2), (1, 0))},
    "padding (2, 0)": {"padding": (2, 0)},
    "groups 2": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
    "depthwise, stride 2": {"groups": 4, "strides": 2},
    "depthwise, multiplier 2": {"groups": 4, "filters": 8},
    "even kernel": {"kernel_size": (2, 4), "strides": 2},
    "relu6": {"activation": "relu6"},
}


def block_model(block, shape=(9, 8, 4), **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    return settle(keras.Model(inputs, block(**options, name="block")(inputs)))


def convolution_of(model):
    return next(layer for layer in model.layers if "Conv" in type(layer).__name__)


def float64_merge(block):
    """The merged kernel and bias in float64 NumPy, by the textbook formulas."""
    kernels, biases = [], []
    root = isinstance(block.expression, BatchNorm)
    inner = block.expression.child if root else block.expression
    branches = inner.children if isinstance(inner, Sum) else [inner]
    (height, width), filters = block.kernel_size, block.filters

    def normalize(norm, kernel, bias):
        gamma, beta, mean, variance = (
            array(v).astype("float64")
            for v in (
                *(norm.gamma, norm.beta),
                *(norm.statistics.moving_mean, norm.statistics.moving_variance),
            )
        )
        gain = gamma / np.sqrt(variance + norm.epsilon)
        return kernel * gain, (bias - mean) * gain + beta

    for branch in branches:
        norm = branch if isinstance(branch, BatchNorm) else None
        leaf = branch.child if norm else branch
        if isinstance(leaf, Identity):
            small = np.zeros((1, 1, filters // block.groups, filters))
            for o in range(filters):
                small[0, 0, o % (filters // block.groups), o] = 1
            bias = np.zeros(filters)
        else:
            assert isinstance(leaf, Convolution)
            small = array(leaf.kernel).astype("float64")
            bias = np.zeros(filters)
            if leaf.bias is not None:
                bias = array(leaf.bias).astype("float64")
        if norm:
            small, bias = normalize(norm, small, bias)
        kh, kw = small.shape[:2]
        kernel = np.zeros((height, width, *small.shape[2:]))
        top, left = (height - 1) // 2 - (kh - 1) // 2, (width - 1) // 2 - (kw - 1) // 2
        kernel[top : top + kh, left : left + kw] = small
        kernels.append(kernel)
        biases.append(bias)
    kernel, bias = sum(kernels), sum(biases)
    return normalize(block.expression, kernel, bias) if root else (kernel, bias)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_block_becomes_one_convolution(block, variant):
    model = block_model(block, **{"filters": 4, **variant})
    merged = repq_tf.merge(model)
    kinds = [type(layer).__name__ for layer in merged.layers]
    assert kinds[-1] in ("Conv2D", "DepthwiseConv2D")
    assert set(kinds[:-1]) <= {"InputLayer", "ZeroPadding2D"} and len(kinds) <= 3
    x = images(4, (9, 8, 4))
    y, expected = array(merged(x)), array(model(x))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # The kernel is the float64 one, rounded once.
    kernel, bias = float64_merge(model.get_layer("block"))
    deployed = convolution_of(merged)
    np.testing.assert_array_equal(
        array(deployed.kernel).ravel(), kernel.astype("float32").ravel()
    )
    np.testing.assert_array_equal(array(deployed.bias), bias.astype("float32"))
    assert (kinds[-1] == "DepthwiseConv2D") == (variant.get("groups") == 4)


def test_dense_blocks_become_dense_layers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = DenseBlock(5, activation="relu", name="a")(inputs)
    model = settle(keras.Model(inputs, DenseBlock(3, use_bias=False, name="b")(x)))
    merged = repq_tf.merge(model)
    kinds = [type(layer) for layer in merged.layers]
    assert kinds == [layers.InputLayer, layers.Dense, layers.Dense]
    x = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")
    np.testing.assert_allclose(array(merged(x)), array(model(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("merged_float", [False, True])
def test_a_network_in_plain_layers_alone(merged_float):
    """Also of a model that was trained on the merged kernel, its restored norm included."""

    def function(x):
        options = {"merged": merged_float}
        x = ConvBNBlock(8, activation="relu", name="stem", **options)(x)
        y = RepVGGBlock(8, name="vgg", **options)(ACBlock(8, name="ac", **options)(x))
        x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
        return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="m")(x))

    model = network(function)
    merged = repq_tf.merge(model)
    kinds = {layer.name: type(layer).__module__.split(".")[0] for layer in merged.layers}
    assert set(kinds.values()) == {"keras"}
    assert {"stem", "ac", "vgg", "relu", "add", "m", "logits"} <= set(kinds)
    assert relative(merged(X), model(X)) < 2e-6
    assert merged.input_shape == model.input_shape and merged.name == "net_merged"
    parameters = sum(np.prod(v.shape) for v in merged.weights)
    kernels = 9 * (3 * 8 + 8 * 8 + 8 * 8) + 8 * 5
    assert parameters == kernels + 3 * 8 + 5


def test_the_given_model_is_left_untouched():
    model = network(residual)
    before = [array(v) for v in model.weights]
    merged = repq_tf.merge(model)
    for variable in merged.weights:
        variable.assign(np.zeros(variable.shape))
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(array(variable), value)
    assert not {id(layer) for layer in merged.layers} & {id(layer) for layer in model.layers}


def test_stock_layers_are_copied():
    def function(x):
        x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="c")(x))
        shared = layers.Conv2D(4, 3, padding="same", name="shared")
        x = layers.Concatenate(name="cat")([shared(x), shared(shared(x))])
        return layers.LayerNormalization(name="norm")(ACBlock(4, name="ac")(x))

    model = network(function)
    assert relative(repq_tf.merge(model)(X), model(X)) < 2e-6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_what_half_precision_trained_is_merged_to_float32(precision, tmp_path):
    keras.config.set_dtype_policy(f"mixed_{precision}")
    try:
        stages = [ACBlock(8, activation="relu", name="a"), ConvBNBlock(8, name="b")]
        ends = [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")]
        model = keras.Sequential([keras.Input(SHAPE), *stages, *ends])
        settle(model)
        merged = repq_tf.merge(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert {v.dtype for v in (*merged.weights, merged.output)} == {"float32"}
    for name in ("a", "b"):
        kernel, _ = float64_merge(model.get_layer(name))
        deployed = array(merged.get_layer(name).kernel)
        np.testing.assert_array_equal(deployed, kernel.astype("float32"))
    repq_tf.export_tflite_float(model, tmp_path / "float.tflite")


def test_frozen_blocks_stay_frozen():
    stages = [ACBlock(4, name="a"), ConvBNBlock(4, name="b"), layers.Flatten()]
    stages.append(DenseBlock(3, name="c"))
    model = keras.Sequential([keras.Input(SHAPE), *stages])
    for name in ("a", "c"):
        model.get_layer(name).trainable = False
    merged = repq_tf.merge(model)
    assert {v.path for v in merged.trainable_variables} == {"b/kernel", "b/bias"}


def test_the_imagenet_stem():
    model = repq_tf.models.resnet18(classes=3, input_shape=(66, 66, 3), width=0.125)
    x = images(2, (66, 66, 3))
    assert relative(repq_tf.merge(model)(x), model(x)) < 1e-5


# Quantized models.


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 3])
def test_a_merged_quantized_model_computes_the_same(bits):
    qat = quantize(network(residual), bits=bits)
    train(qat, images())
    merged = repq_tf.merge(qat)
    kinds = {layer.name: type(layer) for layer in merged.layers}
    assert [kinds[n] for n in ("stem", "ac", "logits_operator")] == [
        *(layers.Conv2D, layers.Conv2D, layers.Dense)
    ]
    y, expected = array(merged(X)), array(qat(X))
    # Its convolutions are floating point, so a tie may round the other way.
    step = float(qat.get_layer("logits").step)
    assert np.mean(y == expected) > 0.99 and np.abs(y - expected).max() < 1.5 * step


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_merged_quantized_kernels_are_whole_numbers_of_steps(bits):
    qat = quantize(network(residual), bits=bits, rules={"logits": {"weight_bits": bits}})
    merged = repq_tf.merge(qat)
    for name, source in (
        ("ac", "stem_quantize"),
        ("vgg", "ac_quantize"),
        ("logits_operator", "mean"),
    ):
        block, layer = qat.get_layer(name), merged.get_layer(name)
        step = qat.get_layer(source).step
        integers, scale, bias, _ = block.integer_weights(step)
        kernel = array(layer.kernel) / array(scale)
        np.testing.assert_allclose(kernel, np.rint(kernel), atol=1e-4)
        np.testing.assert_array_equal(np.rint(kernel).ravel(), array(integers).ravel())
        top = 127 if bits == 8 else 2 ** (bits - 1)
        assert np.abs(np.rint(kernel)).max() <= top
        grid = array(layer.bias) / (array(scale) * float(step))
        np.testing.assert_allclose(grid, array(bias), rtol=1e-6, atol=1e-3)
    assert isinstance(merged.get_layer("stem_quantize"), Quantize)


# The file.

LOAD = """
import sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], model(x))
assert "repq_tf" not in sys.modules
"""


@pytest.mark.slow(10)
def test_the_merged_file_loads_without_this_library(tmp_path):
    model = network(residual)
    repq_tf.merge(model).save(tmp_path / "merged.keras")
    np.save(tmp_path / "x.npy", X)
    paths = [str(tmp_path / name) for name in ("merged.keras", "x.npy", "y.npy")]
    subprocess.run([sys.executable, "-c", LOAD, *paths], check=True, cwd=tmp_path)
    assert relative(np.load(tmp_path / "y.npy"), model(X)) < 2e-6
