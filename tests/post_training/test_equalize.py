"""Equalized networks compute the same, with ranges that agree and features that do not grow."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import repq_tf
from repq_tf import layers as blocks
from repq_tf.graphs import read_graph
from repq_tf.post_training.features import INSIDE
from tests.deployment.files import assert_exact, parity
from tests.fuzz.check import randomize
from tests.fuzz.draws import drawing
from tests.fuzz.lines import line_network
from tests.fuzz.models import network as random_network
from tests.post_training.networks import images, ranges_of_features, unbalance
from tests.quantization.networks import relative
from tests.zoo import BLOCKS

layers = keras.layers
array = keras.ops.convert_to_numpy


def equalize(model, x=None, rounds=None, **options):
    x = images(model) if x is None else x
    return repq_tf.equalize(model, x, rounds=rounds, verbose=False, **options)


def rows(found):
    """The rows of a report by the first layer of each."""
    return {row.makers[0]: row for row in found.streams}


def made(layer):
    """The largest weight of each channel that a stock layer makes."""
    kernel = np.abs(array(layer.kernel))
    return (
        kernel.reshape(-1, *kernel.shape[-2:]).max(0).ravel()
        if depthwise(layer)
        else (kernel.max(axis=tuple(range(kernel.ndim - 1))))
    )


def read(layer):
    """The largest weight that reads each channel."""
    kernel = np.abs(array(layer.kernel))
    return made(layer) if depthwise(layer) else kernel.max(axis=(*range(kernel.ndim - 2), -1))


def depthwise(layer):
    return isinstance(layer, layers.DepthwiseConv2D)


# The function.


@settings(max_examples=12)
@given(
    rng=st.randoms(),
    draw_body=st.sampled_from((random_network, line_network)),
    seed=st.integers(0, 999),
    absorb_bias=st.booleans(),
    relu6=st.sampled_from(("skip", "replace")),
)
def test_random_networks_keep_their_function(rng, draw_body, seed, absorb_bias, relu6):
    """Dead channels, groups, strides, sums, gates, PReLU, branches; the end is never alone."""
    body = draw_body(drawing(rng))
    end = {2: layers.Dense, 3: layers.Conv1D, 4: layers.Conv2D}[len(body.output.shape)]
    size = () if end is layers.Dense else (1,)
    y = end(3, *size)(layers.ReLU()(end(5, *size)(body.output)))
    model = keras.Model(body.input, y)
    randomize(model, np.random.default_rng(seed))
    unbalance(model, seed)
    x, before = images(model), model.get_weights()
    found = equalize(model, x, absorb_bias=absorb_bias, relu6=relu6)
    assert relative(found.model(x), model(x)) < 1e-5
    assert found.difference < 1e-5
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    graph = read_graph(model)
    assert set(read_graph(found.model).nodes) == set(graph.nodes)
    old, new = ranges_of_features(model, x), ranges_of_features(found.model, x)
    for tensor in old:
        readers = [node.layer for node in graph.consumers(tensor.node)]
        fused = len(readers) == 1 and isinstance(readers[0], layers.ReLU)
        # What a ReLU cuts off, which no file stores, may grow.
        assert fused or new[tensor] <= old[tensor] * 1.0001


@pytest.fixture(scope="module")
def zoo():
    """A model with every block between two convolutions of its own, and what it became."""
    inputs, outputs = keras.Input((6, 6, 4)), []
    for name, options in BLOCKS.items():
        x = layers.Conv2D(4, 1, activation="relu", name=f"{name}_before")(inputs)
        kind = getattr(blocks, name)
        x = kind(4, activation="relu", epsilon=1e-9, name=name, **options)(x)
        outputs.append(layers.Conv2D(2, 1, name=f"{name}_after")(x))
    model = keras.Model(inputs, outputs)
    randomize(model, np.random.default_rng(0))
    unbalance(model, dead=0)
    return model, equalize(model)


def test_blocks_keep_their_function_in_inference_and_training(zoo):
    model, found = zoo
    x = images(model)
    for training in (False, True):
        results = (item(x, training=training) for item in (model, found.model))
        for name, before, after in zip(BLOCKS, *results, strict=True):
            assert relative(after, before) < 1e-4, (name, training)


def test_which_sides_of_blocks_are_scaled(zoo):
    found = rows(zoo[1])
    normalized = {"DiracConv", "WeightNormConv"}  # another scale would be another norm
    bounded = {"RepVGGBlock"}  # oabn_k bounds gains
    tied = {"ECB"}  # adds its input
    for name in BLOCKS:
        before = found[f"{name}_before"]
        assert (before.scaled > 0) == (name not in normalized | bounded), name
        if name in tied:
            assert before.makers == (f"{name}_before", name)
            assert before.readers == (name, f"{name}_after")
        else:
            assert (found[name].scaled > 0) == (name not in bounded), name
    assert "filters of" in found["DiracConv_before"].reason
    assert "(OABN) is bounded" in found["RepVGGBlock"].reason
    assert all(found[f"{n}_after"].reason == "an output of the model" for n in BLOCKS)


def test_merging_and_equalizing_commute():
    inputs = keras.Input((8, 8, 3))
    x = blocks.MobileOneBlock(6, branches=2, activation="relu")(inputs)
    x = blocks.RepVGGBlock(6, activation="relu", name="vgg")(x)
    x = layers.Add()([x, blocks.ACBlock(6, activation="relu")(x)])
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    randomize(model, np.random.default_rng(0))
    unbalance(model, dead=0)
    one = repq_tf.merge(equalize(model, rounds=3).model)
    other = equalize(repq_tf.merge(model), images(model), rounds=3).model
    for first, second in zip(one.get_weights(), other.get_weights(), strict=True):
        assert relative(first, second) < 1e-4


# The scales.


def chain(spread=3.0, seed=0):
    """A balanced 1x1, depthwise, 1x1 chain, divided and multiplied by random scales."""
    inputs = keras.Input((6, 6, 5))
    x = layers.Conv2D(8, 1, activation="relu", name="first")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    model = keras.Model(inputs, layers.Conv2D(4, 1, name="last")(x))
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(0, spread, (2, 8)))
    kernels = [rng.normal(size=shape) for shape in ((1, 1, 5, 8), (3, 3, 8, 1), (1, 1, 8, 4))]
    kernels[0] *= scales[0]
    kernels[1] *= (scales[1] / scales[0])[:, None]
    kernels[2] /= scales[1][:, None]
    for name, kernel in zip(("first", "depthwise", "last"), kernels, strict=True):
        bias = model.get_layer(name).bias
        size = scales[("first", "depthwise").index(name)] if name != "last" else 1.0
        bias.assign(rng.normal(0, 0.2, bias.shape) * size)
        model.get_layer(name).kernel.assign(kernel)
    return model


def test_ranges_meet_at_their_geometric_mean():
    """The closed form for a chain through a depthwise layer: `(r1 r2 r3)^(1/3)` each."""
    model = chain()
    first, middle, last = (model.get_layer(n) for n in ("first", "depthwise", "last"))
    expected = np.cbrt(made(first) * made(middle) * read(last))
    found = equalize(model)
    first, middle, last = (found.model.get_layer(n) for n in ("first", "depthwise", "last"))
    assert 1 < found.rounds < 30 and found.moved < 1e-3
    held = sum(row.bounded for row in found.streams)
    meet = [np.isclose(r, expected, rtol=5e-3) for r in (made(first), made(middle), read(last))]
    assert held <= 2 and np.all(meet, axis=0).sum() == 8 - held


def test_rounds_stop_where_they_are_told():
    found = equalize(chain(), rounds=1)
    assert found.rounds == 1 and found.moved > 1e-3


def test_a_stream_of_sums_has_one_scale():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 1, name="stem")(inputs)
    for name in "ab":
        y = layers.Conv2D(5, 3, padding="same", activation="relu", name=f"{name}1")(x)
        y = layers.Conv2D(8, 1, name=f"{name}2")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Conv2D(3, 1, name="head")(x))
    unbalance(model, dead=0, spread=1.0)
    found = equalize(model)
    row = rows(found)["stem"]
    assert row.makers == ("stem", "a2", "b2") and row.readers == ("a1", "b1", "head")
    layer = found.model.get_layer
    ranges = [
        np.max([made(layer(name)) for name in row.makers], axis=0),
        np.max([read(layer(name)) for name in row.readers], axis=0),
    ]
    equal = np.abs(np.log(ranges[0] / ranges[1])) < 5e-3
    assert equal.sum() == 8 - row.bounded and equal.any()


@pytest.mark.parametrize("gain", [1e6, 1e-6])
def test_a_channel_of_another_size_is_brought_back(gain):
    """The network's only fault makes 8 bits a tensor useless; equalized, it is nearly float."""
    model = chain(spread=0.0)
    first, middle = model.get_layer("first"), model.get_layer("depthwise")
    factor = np.where(np.arange(8) == 3, gain, 1.0)
    first.kernel.assign(array(first.kernel) * factor)
    first.bias.assign(array(first.bias) * factor)
    middle.kernel.assign(array(middle.kernel) / factor[:, None])
    x = images(model, 64)

    def error(float_model):
        options = {"per_channel": False, "calibration_data": x, "verbose": False}
        y = array(repq_tf.quantize(float_model, **options)(x))
        return np.std(y - array(model(x))) / np.std(array(model(x)))

    assert error(model) > 0.3
    assert error(equalize(model, x).model) < 0.03


# Features.


def naive(model):
    """Cross-layer equalization as it is usually done: `sqrt(r1 / r2)`, clamped."""
    first, last = model.get_layer("first"), model.get_layer("last")
    scale = np.clip(np.sqrt(made(first) / read(last)), 1e-8, 1e8)
    first.kernel.assign(array(first.kernel) / scale)
    first.bias.assign(array(first.bias) / scale)
    last.kernel.assign(array(last.kernel) * scale[:, None])
    return model


def nearly_dead(size):
    """Two convolutions, the first with a channel of tiny weights and a bias of 0.5."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 5), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="last")(x)
    model = keras.Model(inputs, x)
    first = model.get_layer("first")
    kernel = array(first.kernel) * np.where(np.arange(8) == 2, size, 1.0)
    first.kernel.assign(kernel)
    first.bias.assign(np.full(8, 0.5))
    return model


@pytest.mark.parametrize("size", [1e-20, 1e-5])
def test_features_of_a_nearly_dead_channel_do_not_grow(size):
    """Naive equalization enlarges its bias: a hundred million times, and 8 bits are lost."""
    model = nearly_dead(size)
    x = images(model, 64)
    before = ranges_of_features(model, x)
    harmed, ours = naive(nearly_dead(size)), equalize(model, x).model
    expected = array(model(x))

    def largest_growth(other):
        after = ranges_of_features(other, x)
        return max(after[tensor] / before[tensor] for tensor in before)

    def error(float_model):
        options = {"per_channel": False, "calibration_data": x, "verbose": False}
        y = array(repq_tf.quantize(float_model, **options)(x))
        return np.std(y - expected) / np.std(expected)

    assert relative(harmed(x), expected) < 1e-4 and relative(ours(x), expected) < 1e-5
    assert largest_growth(ours) < 1.0001
    assert error(ours) < 0.05
    if size == 1e-20:
        assert largest_growth(harmed) > 1e7
        assert error(harmed) > 0.5
    else:
        assert largest_growth(harmed) > 30
        assert error(harmed) > 2 * error(ours)


def test_a_channel_that_never_acts_is_not_enlarged():
    model = nearly_dead(1e-3)
    model.get_layer("first").bias.assign(np.where(np.arange(8) == 2, -1.0, 0.5))
    layer = equalize(model).model.get_layer("first")
    assert array(layer.bias)[2] >= -1.0


# Constants.


@pytest.mark.parametrize(
    ("rank", "padding"), [(2, "valid"), (2, "same"), (1, "valid"), (1, "same"), (1, "causal")]
)
def test_a_constant_channel_moves_into_a_bias_where_that_is_exact(rank, padding):
    """Channel 1 is 0.7 everywhere, channel 2 is 0; zeros beside an input let 0.7 stay."""
    conv, pool = (getattr(layers, f"{kind}{rank}D") for kind in ("Conv", "MaxPooling"))
    inputs = keras.Input((*[6] * rank, 2))
    x = conv(4, 1, activation="relu", name="first")(inputs)
    x = conv(3, 3, padding=padding, activation="relu", name="last")(pool(2, 1)(x))
    model = keras.Model(inputs, conv(2, 1)(x))
    first = model.get_layer("first")
    kernel = array(first.kernel).copy()
    kernel[..., 1:3] *= 1e-15
    first.kernel.assign(kernel)
    first.bias.assign([0.1, 0.7, -0.4, 0.2])
    x = images(model)
    found = equalize(model, x)
    row = rows(found)["first"]
    assert (row.folded, row.kept) == ((2, 0) if padding == "valid" else (1, 1))
    new, behind = found.model.get_layer("first"), found.model.get_layer("last")
    moved = padding == "valid"
    np.testing.assert_array_equal(array(new.kernel)[..., 1:3], 0)
    np.testing.assert_allclose(array(new.bias)[1:3], [0 if moved else 0.7, 0], rtol=1e-6)
    gone = array(behind.kernel)[..., 1:3, :]
    assert not gone[..., 1, :].any() and gone[..., 0, :].any() != moved
    assert relative(found.model(x), model(x)) < 1e-6


def test_what_a_channel_never_falls_below_is_absorbed():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, activation="relu", name="first")(inputs)
    x = layers.Conv2D(3, 3, activation="relu", name="second")(x)
    x = layers.Conv2D(3, 3, padding="same", name="padded")(x)
    model = keras.Model(inputs, x)
    model.get_layer("first").bias.assign([20.0, 0.1, 30.0, -1.0])
    model.get_layer("second").bias.assign([200.0, 200.0, 200.0])
    x = images(model)
    found = equalize(model, x, absorb_bias=True)
    told = rows(found)
    assert told["first"].absorbed == 2 and told["second"].absorbed == 0
    features = keras.Model(found.model.input, found.model.get_layer("first").output)
    lowest = array(features(x)).min((0, 1, 2))
    np.testing.assert_allclose(lowest, 0, atol=1e-5)
    assert relative(found.model(x), model(x)) < 1e-5
    assert rows(equalize(model, x))["first"].absorbed == 0


# ReLU6.


def clipped(size):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, activation="relu6", name="inside")(inputs)
    x = layers.Conv2D(4, 1, name="apart")(x)
    x = layers.ReLU(6.0, name="relu6")(x)
    x = blocks.ConvBlock(4, 1, activation="relu6", name="block")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    return unbalance(model, dead=0, spread=size)


def test_relu6_is_skipped_or_replaced_where_it_never_clips():
    model = clipped(0.2)
    x = 0.2 * images(model)
    told = rows(equalize(chained(model), x))
    for name, reason in (("inside", "inside"), ("apart", "relu6"), ("block", "block")):
        assert told[name].reason == f"{reason} has relu6" and told[name].scaled == 0
    found = equalize(chained(model), x, relu6="replace")
    assert all(rows(found)[name].scaled for name in ("inside", "apart", "block"))
    assert found.model.get_layer("relu6").max_value is None
    for name in ("inside", "block"):
        assert found.model.get_layer(name).activation is keras.activations.relu
    assert relative(found.model(x), chained(model)(x)) < 1e-5
    large = equalize(chained(model), 100 * x, relu6="replace")
    assert rows(large)["inside"].reason == "inside has relu6"
    assert relative(large.model(100 * x), chained(model)(100 * x)) < 1e-5


def chained(model):
    """The model with two more layers, so that something can always be scaled."""
    keras.utils.set_random_seed(1)
    x = layers.Conv2D(3, 1, activation="relu", name="tail")(model.output)
    return keras.Model(model.input, layers.Conv2D(2, 1, name="tip")(x))


# What stands between.


def test_every_rule_between_layers():
    inputs = keras.Input((8, 8, 3))
    one = layers.Conv2D(4, 1, name="one")(inputs)
    two = layers.Conv2D(4, 1, activation="relu", name="two")(inputs)
    both = layers.Concatenate(name="both")([layers.PReLU(name="alpha")(one), two])
    x = layers.Conv2D(8, 3, padding="same", groups=2, use_bias=False, name="grouped")(both)
    x = layers.LeakyReLU()(layers.BatchNormalization(name="norm")(x))
    x = blocks.DepthToSpace(2, name="depth")(x)
    x = layers.ZeroPadding2D(1)(layers.AveragePooling2D(2)(x))
    x = layers.UpSampling2D(2)(layers.Dropout(0.1)(x))
    x = layers.Conv2D(4, 3, strides=2, activation="relu", name="strided")(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(
        layers.GlobalAveragePooling2D(keepdims=True)(x)
    )
    x = layers.Multiply(name="weighed")([x, gate])
    x = blocks.SqueezeExcite(2, name="squeeze")(x)
    shared = layers.Conv2D(4, 1, activation="relu", name="shared")
    x = layers.Maximum()([shared(x), shared(layers.MaxPooling2D(3, 1, "same")(x))])
    x = layers.Flatten()(layers.GlobalMaxPooling2D(keepdims=True)(x))
    x = layers.Dense(5, activation="relu", name="dense")(x)
    model = keras.Model(inputs, layers.Dense(3, name="out")(x))
    randomize(model, np.random.default_rng(0))
    unbalance(model, dead=0)
    x = images(model)
    found = equalize(model, x)
    told = rows(found)
    assert relative(found.model(x), model(x)) < 1e-5
    expected = {
        "one": ("grouped",),
        "two": ("grouped",),
        "grouped": ("strided",),
        "strided": ("gate", "squeeze", "shared"),
        "shared": ("dense",),
        "dense": ("out",),
    }
    for name, readers in expected.items():
        assert told[name].readers == readers and told[name].scaled, name
    assert told["gate"].reason == "gate has sigmoid"
    assert told["out"].reason == "an output of the model"
    # Four channels of a square of pixels have one scale.
    gamma = array(found.model.get_layer("norm").gamma) / array(model.get_layer("norm").gamma)
    np.testing.assert_allclose(gamma.reshape(4, 2), np.tile(gamma[:2], (4, 1)), rtol=1e-5)
    assert gamma[0] != pytest.approx(gamma[1])
    text = str(found)
    assert "gate has sigmoid" in text and "rounds" in text


def test_lines_and_separable_convolutions_are_paired_in_their_order():
    inputs = keras.Input((12, 4))
    x = layers.Conv1D(6, 3, padding="causal", activation="relu", name="causal")(inputs)
    x = layers.Conv1D(6, 3, dilation_rate=2, groups=2, use_bias=False, name="grouped")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv1D(3, 2, "same", depth_multiplier=2, name="depthwise")(x)
    x = layers.LeakyReLU()(layers.UpSampling1D(2)(x))
    x = layers.SeparableConv1D(5, 3, padding="same", activation="relu", name="line")(x)
    x = layers.Reshape((-1, 2, 5))(layers.ZeroPadding1D(1)(layers.MaxPooling1D(2)(x)))
    x = layers.SeparableConv2D(4, 2, depth_multiplier=2, name="image")(x)
    x = layers.Dense(3, name="dense")(layers.Flatten()(layers.ReLU()(x)))
    model = keras.Model(inputs, x)
    randomize(model, np.random.default_rng(0))
    unbalance(model, dead=0)
    x = images(model)
    found = equalize(model, x)
    told = rows(found)
    order = "causal grouped depthwise line/depthwise line image/depthwise image dense".split()
    assert list(told) == order
    for name, reader in zip(order[:-1], order[1:], strict=True):
        assert told[name].readers == (reader,) and told[name].scaled, name
    assert relative(found.model(x), model(x)) < 1e-5
    old, new = ranges_of_features(model, x), ranges_of_features(found.model, x)
    inside = [tensor for tensor in old if tensor.index == INSIDE]
    assert {tensor.node for tensor in inside} == {"line", "image"}
    assert all(new[tensor] <= old[tensor] * 1.0001 for tensor in inside)


@pytest.mark.parametrize("kind", [layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax])
def test_a_layer_as_activation_is_as_one_behind_the_layer(kind):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, activation=kind(), name="conv")(inputs)
    x = layers.Conv2D(4, 1, activation="relu")(layers.Conv2D(4, 1, activation="relu")(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    found = equalize(model, images(model))
    assert bool(rows(found)["conv"].scaled) == (kind in (layers.ReLU, layers.LeakyReLU))
    assert relative(found.model(images(model)), model(images(model))) < 1e-5


def test_flattened_features_have_a_scale_for_each_channel():
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="dense")(layers.Flatten()(x)))
    unbalance(model, dead=0)
    found = equalize(model)
    assert relative(found.model(images(model)), model(images(model))) < 1e-6
    before, after = (array(m.get_layer("dense").kernel) for m in (model, found.model))
    factors = (after / before).reshape(16, 3, 2)
    np.testing.assert_allclose(factors, factors[:1, :, :1] * np.ones((16, 1, 2)), rtol=1e-5)


def test_channels_are_told_apart_in_any_precision():
    """In bfloat16 neither 257 nor 259 is a number, but both are channels."""
    found = []
    for policy in ("float32", "mixed_bfloat16"):
        inputs = keras.Input((1, 1, 2))
        x = layers.Conv2D(300, 1, activation="relu", name="conv")(inputs)
        x = layers.Flatten(dtype=policy)(x)
        model = keras.Model(inputs, layers.Dense(2)(x))
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        found.append(array(equalize(model).model.get_layer("conv").kernel))
    np.testing.assert_allclose(*found, rtol=0.02)  # features that bound scales are rounded, too


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda: layers.Activation("tanh", name="stop"), "stop has tanh"),
        (lambda: layers.LayerNormalization(name="stop"), "stop (LayerNormalization)"),
        (lambda: layers.BatchNormalization(name="stop"), "stop (BatchNormalization) has no"),
        (lambda: layers.ReLU(3.0, name="stop"), "stop has ReLU"),
        (lambda: layers.Conv2DTranspose(4, 2, name="stop"), "stop (Conv2DTranspose)"),
    ],
)
def test_what_cannot_pass_a_scale_on_is_named(between, reason):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, activation="relu", name="conv")(inputs)
    x = between()(x)
    x = layers.Conv2D(4, 1, activation="relu")(x)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(x))
    found = equalize(model)
    assert rows(found)["conv"].reason.startswith(reason)
    assert relative(found.model(images(model)), model(images(model))) < 1e-6


# And then.


def test_an_equalized_network_is_exported_exactly(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.ReLU()(layers.Add()([x, layers.Conv2D(8, 1)(y)]))
    x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    model = unbalance(keras.Model(inputs, x), spread=3.0, dead=0.3)
    found = equalize(model)
    assert any(row.folded or row.kept for row in found.streams)
    qat = repq_tf.quantize(
        found.model, per_channel=False, calibration_data=images(model), verbose=False
    )
    _, report = parity(qat, tmp_path / "equal.tflite", images(model))
    assert_exact(report)


def test_without_images_random_ones_bound_features(capsys):
    model = nearly_dead(1e-5)
    found = repq_tf.equalize(model)
    assert "random images" in capsys.readouterr().out
    x = images(model)
    before, after = ranges_of_features(model, x), ranges_of_features(found.model, x)
    assert all(after[tensor] < 3 * before[tensor] for tensor in before)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a positive whole number. Received: 0"),
        ({"threshold": 0}, "threshold must be a number above 0 and at most 1"),
        ({"relu6": "keep"}, "relu6 must be one of .*'skip', 'replace'.* Received: 'keep'"),
        ({"absorb_bias": "yes"}, "absorb_bias must be True or False"),
        ({"absorb_bias": True, "calibration_data": None}, "calibration_data must be given"),
        ({"relu6": "replace", "calibration_data": None}, "calibration_data must be given"),
        ({"calibration_data": np.ones((4, 3, 3, 5))}, "calibration data must be batches of"),
        ({"calibration_data": np.ones((4, 6, 6, 5))}, "must be images. Received: values that"),
    ],
)
def test_bad_arguments_are_named(options, message):
    model = chain()
    with pytest.raises(ValueError, match=message):
        repq_tf.equalize(model, **{"calibration_data": images(model), **options})


def test_models_that_cannot_be_equalized_are_refused():
    inputs = keras.Input((6, 6, 2))
    alone = keras.Model(inputs, layers.Conv2D(2, 1)(inputs), name="alone")
    with pytest.raises(ValueError, match="'alone': no channel can be scaled. .*an output of"):
        equalize(alone)
    qat = repq_tf.quantize(alone, calibration_data=images(alone), verbose=False)
    with pytest.raises(ValueError, match="is quantized already"):
        equalize(qat)
    free = keras.Input((None, None, 2))
    x = layers.Conv2D(3, 1, activation="relu")(free)
    with pytest.raises(ValueError, match="calibration_data must be given for model"):
        repq_tf.equalize(keras.Model(free, layers.Conv2D(2, 1)(x)))
