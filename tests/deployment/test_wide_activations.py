"""`activation_bits=16`: files of int16 activations that compute what the model computes."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import DepthToSpace
from tests.deployment.files import TYPES, Convolution, assert_exact, parity, read, run
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
    train,
)
from tests.quantization.test_containers import everything

X = images(48)


def wide(function, **options):
    return quantize(network(function), weight_bits=8, activation_bits=16, **options)


def conv(name, filters=6, size=3, **options):
    return layers.Conv2D(filters, size, name=name, **options)


def sums_and_means(x):
    a = conv("a", padding="same", activation="relu")(x)
    b = conv("b", padding="same")(a)
    x = layers.ReLU(6.0, name="relu6")(layers.Add(name="s")([a, b]))
    mean = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(x)
    x = layers.Add(name="broadcast")([x, conv("gate", 6, 1)(mean)])
    return layers.Dense(3, name="f")(layers.GlobalAveragePooling2D(name="m")(x))


def shared_scales(x):
    a = conv("a", padding="same", activation="relu")(x)
    b = layers.DepthwiseConv2D(3, padding="same", name="b")(a)
    s = layers.Add(name="s")([a, b])  # on a grid of its own, then rescaled
    x = layers.Concatenate(name="cat")([layers.MaxPooling2D(1, name="p")(a), b, s, x])
    x = layers.AveragePooling2D(3, strides=2, padding="same", name="average")(x)
    x = layers.ReLU(name="relu")(layers.ZeroPadding2D(((1, 0), (2, 1)), name="z")(x))
    x = layers.Flatten(name="flat")(conv("c", 4, 2)(x))
    return layers.Dense(1, name="one")(x)


def upscaling(x):
    x = conv("a", 8, padding="same")(x)
    alpha = keras.initializers.RandomUniform(-0.5, 1.5, seed=3)
    x = layers.PReLU(alpha, shared_axes=[1, 2], name="p")(x)
    x = DepthToSpace(2, name="d")(x)
    x = layers.PReLU(alpha, name="q")(layers.Dense(9, name="f")(layers.Flatten()(x)))
    return layers.Dense(3, name="g")(x)


def clamped(x):
    for name in "abcd":
        x = conv(name, padding="same", activation="relu6")(x)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("function", [everything, sums_and_means, shared_scales, upscaling])
def test_every_operator_is_exact(function, tmp_path):
    qat = wide(function)
    operators, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(operators)
    graph = read(tmp_path / "x.tflite").subgraphs[0]
    outputs = [graph.tensors[int(i)] for operator in graph.operators for i in operator.outputs]
    assert {TYPES[tensor.type] for tensor in outputs} == {"INT16"}
    assert not any(tensor.quantization.zeroPoint.any() for tensor in outputs)


def test_averages_of_wide_windows(tmp_path):
    """Sums of 1024 levels of 16 bits pass 2^24."""

    def function(x):
        return layers.AveragePooling2D(32, name="pool")(conv("a", activation="relu")(x))

    qat = quantize(network(function, (34, 34, 3)), activation_bits=16)
    _, report = parity(qat, tmp_path / "x.tflite", images(64, (34, 34, 3)))
    assert_exact(report)


def test_the_6_of_a_relu6_inside_the_grid(tmp_path):
    qat = wide(clamped)
    for k, name in enumerate("abcd"):
        quantizer = quantizer_of(qat, name).activation_quantizer
        quantizer.set_step((7.3 + 0.1 * k) / 32767)
    assert_exact(parity(qat, tmp_path / "x.tflite", X)[1])


@pytest.mark.slow
def test_types_of_biases(tmp_path):
    """INT32 is for the fast kernels; the file must say so, which the converter does not."""
    repq_tf.export_tflite(wide(everything), tmp_path / "x.tflite")
    model = read(tmp_path / "x.tflite")
    for name in ("stem", "strided", "grouped", "depthwise", "logits"):
        found = Convolution(model, name)
        kind = "INT64" if name in ("grouped", "depthwise") else "INT32"
        assert TYPES[found.bias.type] == kind
        if name != "depthwise":
            assert found.operator.builtinOptions.quantizedBiasType == found.bias.type


@pytest.mark.slow
@pytest.mark.parametrize("ends", [(None, None), ("float32", "float32"), ("int16", "float32")])
def test_all_ends_agree(ends, tmp_path):
    qat = wide(residual)
    _, report = parity(qat, tmp_path / "x.tflite", X, input_type=ends[0], output_type=ends[1])
    assert_exact(report)
    step = np.float32(qat.get_layer("image_quantize").step)
    given = X if ends[0] == "float32" else np.rint(X * (1 / step)).astype("int16")
    (y,), _, (end,) = run(tmp_path / "x.tflite", given)
    if ends[1] is None:
        assert y.dtype == np.int16
        y = y * np.float32(end["quantization"][0])
    np.testing.assert_array_equal(y, array(qat(X)))


@pytest.mark.parametrize("value", ["int8", "uint8", "int32"])
def test_other_ends_are_refused(value, tmp_path):
    qat = wide(clamped)
    for argument in ("input_type", "output_type"):
        with pytest.raises(
            ValueError, match=rf"{argument} must be one of \('int16', 'float32'"
        ):
            repq_tf.export_tflite(qat, tmp_path / "x.tflite", **{argument: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_trained_and_saved_model(tmp_path):
    qat = wide(residual)
    before = quantizer_of(qat, "ac").step
    losses = train(qat, X, steps=3, rate=1e-3)
    assert np.isfinite(losses).all() and quantizer_of(qat, "ac").step != before
    qat.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(array(again(X)), array(qat(X)))
    assert_exact(parity(again, tmp_path / "x.tflite", X)[1])


@pytest.mark.slow
def test_a_mean_beyond_its_grid_saturates(tmp_path):
    qat = wide(residual)
    quantizer = quantizer_of(qat, "mean").activation_quantizer
    quantizer.set_step(float(quantizer.step) / 64)
    assert_exact(parity(qat, tmp_path / "x.tflite", X)[1])


@pytest.mark.slow
def test_it_is_much_closer_to_the_float_model(tmp_path):
    model = network(residual)
    exact = array(repq_tf.merge(model)(X))
    errors = []
    for bits in (8, 16):
        qat = quantize(model, activation_bits=bits, weight_bits=8)
        # With the integer weights, so that activations alone make the difference.
        layer = quantizer_of(qat, "stem")
        assert (layer.bits, float(layer.activation_quantizer.low)) == (bits, 0)
        weights = repq_tf.merge(qat)
        reference = weights_only(weights, model)(X)
        errors.append(np.abs(array(qat(X)) - array(reference)).max())
    assert errors[1] < errors[0] / 50 and errors[1] < 1e-3 * np.abs(exact).max()


def weights_only(merged, model):
    """The float network with the quantized weights."""
    plain = repq_tf.merge(model)
    for layer in plain.layers:
        if layer.weights:
            layer.set_weights(block_of(merged, layer.name).get_weights())
    return plain


@pytest.mark.slow
def test_4_bit_weights_in_both_containers(tmp_path):
    qat = wide(sums_and_means, rules={"*": {"weight_bits": 4}})
    sizes = []
    for container in ("int8", "int4"):
        path = tmp_path / f"{container}.tflite"
        _, report = parity(qat, path, X, container=container)
        assert_exact(report)
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.slow
def test_images_of_any_size(tmp_path):
    model = repq_tf.models.ecbsr(m=2, c=6, scale=3)
    x = images(4, (12, 10, 1))
    qat = quantize(model, activation_bits=16, calibration_data=x)
    assert_exact(parity(qat, tmp_path / "x.tflite", x)[1])
    assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", images(2, (7, 15, 1))))


# Refusals.


def softmax(x):
    return layers.Dense(3, activation="softmax", name="s")(layers.Flatten()(x))


def upsampling(x):
    return conv("b")(layers.UpSampling2D(2, name="up")(conv("a")(x)))


def leaky_relu(x):
    return conv("b")(layers.LeakyReLU(0.2, name="leaky")(conv("a")(x)))


@pytest.mark.parametrize(
    ("function", "name"), [(softmax, "s_softmax"), (leaky_relu, "leaky"), (upsampling, "up")]
)
def test_operators_without_16_bits_are_refused_by_name(function, name):
    with pytest.raises(ValueError, match=rf"layer '{name}' .*16 bits"):
        wide(function)


@pytest.mark.parametrize(
    ("bits", "rules"),
    [(16, {"b": {"activation_bits": 8}}), (8, {"b": {"activation_bits": 16}})],
)
def test_other_bits_beside_them_are_refused(bits, rules):
    with pytest.raises(ValueError, match="16 bits in the whole model or nowhere"):
        quantize(network(clamped), weight_bits=8, activation_bits=bits, rules=rules)


def test_weights_have_8_bits_at_most():
    model = network(clamped)
    for options in ({"bits": 16}, {"weight_bits": 16}, {"rules": {"a": {"weight_bits": 16}}}):
        with pytest.raises(ValueError, match="bits must be .* 2 to 8. Received: 16"):
            quantize(model, **options)
    for bits in (1, 9, 15, 32, 16.0):
        with pytest.raises(ValueError, match=r"activation_bits must be .* 2 to 8, or 16"):
            quantize(model, weight_bits=8, activation_bits=bits)


def test_first_and_last_layers():
    """8-bit weights and, as everywhere, 16-bit activations."""
    qat = quantize(network(residual), weight_bits=4, activation_bits=16)
    found = {n: q.bits for n, q in repq_tf.quantizers.find(qat).items()}
    assert {bits for name, bits in found.items() if "/activation" in name} == {16}
    assert {name for name, bits in found.items() if bits == 8} == {
        "stem/weight",
        "logits_operator/weight",
    }
    assert qat.input_shape[1:] == SHAPE
