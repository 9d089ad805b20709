"""`container="int4"`: half the file, the same integers, and a model that rounds like it."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from repq_tf.tflite.int4 import pack, unpack
from tests.deployment.files import TYPES, Convolution, assert_exact, parity, read, run
from tests.quantization.networks import (
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
    quantizer_of,
)

X = images(64)
BITS = {"*": {"weight_bits": 4}}


def everything(x):
    """Dense, strided, pointwise, grouped and depthwise convolutions, signed sums, logits."""
    x = ConvBNBlock(8, activation="relu", name="stem")(x)
    y = ACBlock(8, activation="relu", name="ac")(x)
    y = RepVGGBlock(8, name="vgg")(y)
    x = layers.Add(name="add")([x, y])
    x = layers.Conv2D(9, 3, strides=2, padding="same", name="strided")(x)
    x = layers.Conv2D(9, 1, activation="relu6", name="pointwise")(x)
    x = layers.Conv2D(6, 3, groups=3, padding="same", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(12, activation="relu", name="hidden")(x)
    return layers.Dense(5, name="logits")(x)


NAMES = "stem ac vgg strided pointwise grouped depthwise hidden logits".split()
PACKED = {"stem", "ac", "vgg", "strided", "pointwise", "hidden", "logits"}


@pytest.fixture(scope="module")
def qat():
    return quantize(positive(network(everything)), rules=BITS)


def positive(model):
    """No channel has its integers negated."""
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name == "gamma":
                weight.assign(np.abs(array(weight)))
    return model


def stored_types(path):
    model = read(path)
    return {name: TYPES[Convolution(model, name).kernel.type] for name in NAMES}


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 3, 3, 5), (4, 1, 1, 2)])
def test_packing(shape, rng):
    integers = rng.integers(-8, 8, shape).astype("int8")
    packed = pack(integers)
    assert len(packed) == (integers.size + 1) // 2
    np.testing.assert_array_equal(unpack(packed, shape), integers)
    first, second = integers.reshape(-1)[:2]
    assert packed[0] == (int(second) & 15) * 16 + (int(first) & 15)


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [8, 3])
def test_the_model_rounds_like_the_file(activation_bits, tmp_path):
    qat = quantize(positive(network(everything)), activation_bits=activation_bits, rules=BITS)
    operators, report = parity(qat, tmp_path / "x.tflite", X, container="int4")
    assert_exact(report)
    assert operators["CONV_2D"] >= 6
    types = stored_types(tmp_path / "x.tflite")
    assert types == {name: "INT4" if name in PACKED else "INT8" for name in NAMES}
    # The copy computes it; the model itself differs here and there, by a step a layer.
    twin = repq_tf.with_container(qat, "int4")
    step = np.float32(qat.get_layer("image_quantize").step)
    (y,), _, (end,) = run(
        tmp_path / "x.tflite", np.rint(np.clip(X / step, -128, 127)).astype("int8")
    )
    scale, zero = end["quantization"]
    np.testing.assert_allclose(array(twin(X)), (y - float(zero)) * scale, rtol=1e-6)
    assert np.any(array(twin(X)) != array(qat(X)))


def test_one_layer_differs_by_ties_alone(tmp_path):
    """The stated bound: one step, in a few percent of the values, before it adds up."""
    qat = quantize(network(lambda x: layers.Conv2D(16, 3, name="a")(x)), rules=BITS)
    repq_tf.export_tflite(qat, tmp_path / "x.tflite", container="int4")
    assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", X))
    a, b = (array(repq_tf.with_container(qat, kind)(X)) for kind in ("int8", "int4"))
    np.testing.assert_array_equal(a, array(qat(X)))
    steps = np.abs(a - b) / array(quantizer_of(qat, "a").step)
    assert 0 < np.mean(steps > 0.5) < 0.06 and steps.max() < 1.01


@pytest.mark.parametrize("inputs", [3, 8, 13])
def test_dense_layers_of_odd_inputs_round_as_their_kernels_do(inputs, tmp_path):
    def function(x):
        x = layers.GlobalAveragePooling2D(name="mean")(x)
        x = layers.Dense(inputs, activation="relu", name="narrow")(x)
        return layers.Dense(32, name="wide")(x)

    qat = quantize(positive(network(function)), rules=BITS)
    _, report = parity(qat, tmp_path / "x.tflite", images(512), container="int4")
    assert_exact(report)


@pytest.mark.slow
def test_the_same_integers_in_half_the_bytes(qat, tmp_path):
    for kind in ("int8", "int4"):
        repq_tf.export_tflite(qat, tmp_path / f"{kind}.tflite", container=kind)
    models = [read(tmp_path / f"{kind}.tflite") for kind in ("int8", "int4")]
    sizes = []
    for name in NAMES:
        wide, narrow = (Convolution(model, name) for model in models)
        integers = wide.data(wide.kernel)
        raw = bytes(bytearray(narrow.model.buffers[narrow.kernel.buffer].data))
        if name in PACKED:
            np.testing.assert_array_equal(
                unpack(np.frombuffer(raw, "uint8"), integers.shape), integers
            )
            sizes.append((integers.size, len(raw)))
        np.testing.assert_array_equal(wide.data(wide.bias), narrow.data(narrow.bias))
        np.testing.assert_array_equal(
            wide.kernel.quantization.scale, narrow.kernel.quantization.scale
        )
    before, after = np.sum(sizes, axis=0)
    assert before / 2 <= after <= before / 2 + len(sizes)
    saved = [(tmp_path / f"{kind}.tflite").stat().st_size for kind in ("int8", "int4")]
    assert saved[0] - saved[1] == pytest.approx(before - after, abs=256)


def test_a_weight_of_8_stays_in_8_bits_by_name(tmp_path):
    model = network(lambda x: layers.Conv2D(4, 3, name="b")(ConvBNBlock(4, name="a")(x)))
    gamma = model.get_layer("a").root.gamma
    gamma.assign(-np.abs(array(gamma)))
    qat = quantize(model, rules=BITS)
    quantizer = block_of(qat, "a").weight_quantizer
    quantizer.set_step(array(quantizer.step) / 2)  # so that -8 and, negated, 8 occur
    integers = array(qat.get_layer("a").integer_weights(1.0)[0])
    assert (integers.min(), integers.max()) == (-7, 8)
    with pytest.warns(UserWarning, match=r"layers \['a'\] stay in the int8 container"):
        _, report = parity(qat, tmp_path / "x.tflite", X, container="int4")
    assert_exact(report)
    model = read(tmp_path / "x.tflite")
    kinds = [TYPES[Convolution(model, name).kernel.type] for name in "ab"]
    assert kinds == ["INT8", "INT4"]


@pytest.mark.slow
def test_a_shared_quantizer_of_both_containers(tmp_path):
    """A concatenation's inputs share one grid, but are rounded by kernels of both kinds."""

    def function(x):
        a = layers.Conv2D(4, 3, padding="same", name="a")(x)
        b = layers.Conv2D(4, 3, padding="same", name="b")(x)
        return layers.Conv2D(3, 1, name="c")(layers.Concatenate(name="cat")([a, b]))

    rules = {"a": {"weight_bits": 4}, "c": {"weight_bits": 3}}
    qat = quantize(network(function), rules=rules)
    _, report = parity(qat, tmp_path / "x.tflite", X, container="int4")
    assert_exact(report)
    assert_exact(parity(qat, tmp_path / "y.tflite", X)[1])


@pytest.mark.slow
def test_a_saved_model_keeps_its_rounding(qat, tmp_path):
    twin = repq_tf.with_container(qat, "int4")
    twin.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(array(again(X)), array(twin(X)))
    back = repq_tf.with_container(again, "int8")
    np.testing.assert_array_equal(array(back(X)), array(qat(X)))


@pytest.mark.parametrize("value", ["int2", None, 4])
def test_bad_containers(qat, value, tmp_path):
    for function in (
        lambda: repq_tf.export_tflite(qat, tmp_path / "x.tflite", container=value),
        lambda: repq_tf.with_container(qat, value),
    ):
        with pytest.raises(ValueError, match=r"container must be one of .*Received"):
            function()
    assert not list(tmp_path.iterdir())
