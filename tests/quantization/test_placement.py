"""Where quantizers go, their bits and signs, and what is refused."""

import keras
import numpy as np
import pytest

from repq_tf.graphs import read_graph
from repq_tf.layers import (
    ACBlock,
    ConvBNBlock,
    Quantize,
    QuantizedAdd,
    ReparamConv,
    SqueezeExcite,
)
from repq_tf.quantization.expand import expand
from repq_tf.quantization.placement import place
from repq_tf.quantization.rules import LayerBits, check_rules
from repq_tf.quantizers import find
from tests.quantization.networks import SHAPE, images, layers, quantize, residual


def model_of(function, shape=SHAPE):
    inputs = keras.Input(shape, name="image")
    return keras.Model(inputs, function(inputs))


def sites(function, bits=4, rules=(), signed=True, **options):
    """The sites of a model by name."""
    graph = expand(read_graph(model_of(function)))
    default = LayerBits(**{"weight_bits": bits, "activation_bits": bits, **options})
    return place(graph, default, check_rules(rules), {"image": signed}).sites


def conv(name, filters=4, size=3, **options):
    options.setdefault("padding", "same")
    return layers.Conv2D(filters, size, name=name, **options)


def flat(layer):
    return lambda x: layer(layers.Flatten()(x))


def activation_quantizers(model):
    """How often each activation quantizer of a model is called."""
    graph = read_graph(model)
    nodes = [
        node.layer.name for node in graph.nodes.values() if isinstance(node.layer, Quantize)
    ]
    assert {f"{name}/activation" for name in nodes} == {
        name for name in find(model) if name.endswith("/activation")
    }
    return {name: nodes.count(name) for name in nodes}


# One quantizer for every stored tensor.


def test_every_stored_tensor_has_one_quantizer():
    model = quantize(model_of(residual))
    assert activation_quantizers(model) == {
        name: 1
        for name in (
            *("image_quantize", "stem_quantize", "ac_quantize", "vgg_quantize"),
            *("add", "mean", "logits"),
        )
    }
    weights = [name for name in find(model) if name.endswith("/weight")]
    assert weights == [f"{name}/weight" for name in ("stem", "ac", "vgg", "logits_operator")]
    assert [type(model.get_layer(n)) for n in ("stem", "ac")] == [ConvBNBlock, ACBlock]
    assert "relu" not in [layer.name for layer in model.layers]  # fused into the sum


def test_an_activation_is_fused_where_nobody_else_reads():
    def fused(x):
        x = layers.ReLU(6.0, name="r1")(conv("a")(x))
        x = layers.BatchNormalization(name="bn")(conv("b")(x))
        return layers.Activation("relu", name="r2")(x)

    found = sites(fused)
    assert list(found) == ["image", "a", "b"]
    assert (found["a"].activation, found["a"].fused) == ("relu6", ["r1"])
    assert (found["b"].activation, found["b"].fused) == ("relu", ["bn", "r2"])
    assert found["b"].batch_norm.name == "bn"
    assert (found["a"].signed, found["b"].signed) == (False, False)

    def read_twice(x):
        x = conv("a")(x)
        return layers.Add(name="sum")([x, layers.ReLU(name="r")(x)])

    found = sites(read_twice)
    assert (found["a"].activation, found["a"].signed) == ("linear", True)
    assert (found["r"].kind, found["r"].group) == ("same_scale", found["a"].group)

    def left_the_model(x):
        x = conv("a")(x)
        return [x, layers.ReLU(name="r")(x)]

    assert sites(left_the_model)["a"].activation == "linear"

    def twice(x):
        x = layers.ReLU(name="r1")(conv("a")(x))
        return layers.ReLU(6.0, name="r2")(x)

    found = sites(twice)
    assert (found["a"].activation, found["r2"].kind) == ("relu", "same_scale")


SAME_SCALE = {
    "max_pool": lambda x: layers.MaxPooling2D(2)(x),
    "average_pool": lambda x: layers.AveragePooling2D(2)(x),
    "flatten": lambda x: layers.Flatten()(x),
    "reshape": lambda x: layers.Reshape((50, -1))(x),
    "padding": lambda x: layers.ZeroPadding2D(((1, 0), (0, 2)))(x),
    "dropout": lambda x: layers.Dropout(0.5)(x),
    "global_max_pool": lambda x: layers.GlobalMaxPooling2D()(x),
    "three": lambda x: layers.Flatten()(layers.ZeroPadding2D(1)(layers.MaxPooling2D(2)(x))),
    "mean of one pixel": lambda x: layers.GlobalAveragePooling2D()(layers.MaxPooling2D(10)(x)),
}


@pytest.mark.parametrize("operator", SAME_SCALE.values(), ids=SAME_SCALE.keys())
@pytest.mark.parametrize("activation", [None, "relu"])
def test_same_scale_operators_pass_the_scale_on(operator, activation):
    found = sites(lambda x: operator(conv("a", activation=activation)(x)))
    rest = [site for name, site in found.items() if name not in ("image", "a")]
    assert rest
    for site in rest:
        assert (site.kind, site.group) == ("same_scale", found["a"].group)
        assert site.signed == (activation is None)


@pytest.mark.parametrize("name", ["max_pool", "flatten", "padding", "dropout"])
def test_same_scale_operators_have_no_quantizer(name):
    model = quantize(model_of(lambda x: SAME_SCALE[name](conv("a")(x))))
    assert activation_quantizers(model) == {"image_quantize": 1, "a_quantize": 1}


def test_an_average_is_rounded_on_the_grid_of_its_input():
    model = quantize(model_of(lambda x: layers.AveragePooling2D(2)(conv("a")(x))))
    assert activation_quantizers(model) == {"image_quantize": 1, "a_quantize": 2}


def concatenated(x):
    a, b = conv("a", activation="relu")(x), conv("b", activation="relu")(x)
    s = layers.Add(name="sum")([a, conv("c")(b)])
    x = layers.Concatenate(name="cat")([layers.MaxPooling2D(1, name="pool")(a), s])
    return conv("last")(x)


def test_concatenation_shares_one_quantizer_among_its_inputs():
    found = sites(concatenated)
    assert found["cat"].group == found["a"].group == found["sum"].group == found["pool"].group
    assert found["b"].group != found["a"].group
    # A sum that can be negative makes the common grid signed.
    assert [found[n].signed for n in ("a", "b", "sum", "cat", "pool")] == [
        True,
        False,
        *[True] * 3,
    ]
    model = quantize(model_of(concatenated))
    # The sum rounds to a grid of its own first, since its rounding is right for one only.
    counts = {"a_quantize": 2, "b_quantize": 1, "c_quantize": 1, "sum": 1}
    assert activation_quantizers(model) == {"image_quantize": 1, **counts, "last": 1}
    graph = read_graph(model)
    inputs = graph.nodes["cat"].inputs
    pooled = graph.nodes[inputs[0].node]
    origins = [graph.nodes[t.node].layer for t in (pooled.inputs[0], inputs[1])]
    assert origins[0] is origins[1] is model.get_layer("a_quantize")


def test_concatenations_in_a_row_are_one_group():
    def dense(x):
        for k in range(3):
            x = layers.Concatenate(name=f"cat{k}")([x, conv(f"c{k}", activation="relu")(x)])
        return x

    assert len({site.group for site in sites(dense).values()}) == 1
    assert activation_quantizers(quantize(model_of(dense))) == {"image_quantize": 4}


def test_signs():
    def function(x):
        a, b = conv("a", activation="relu")(x), conv("b", activation="relu6")(x)
        c = conv("c")(x)
        positive = layers.Add(name="positive")([a, b])
        both = layers.Add(name="both")([positive, c])
        cut = layers.ReLU(name="cut")(layers.Add(name="cut_sum")([both, c]))
        means = [
            layers.GlobalAveragePooling2D(name=f"mean_{t.name}")(t)
            for t in (positive, both, cut)
        ]
        return [layers.Dense(2, name="logits")(means[0]), *means[1:]]

    found = sites(function)
    expected = dict(a=False, b=False, c=True, positive=False, both=True, cut_sum=False)
    assert {name: found[name].signed for name in expected} == expected
    means = [site.signed for name, site in found.items() if name.startswith("mean")]
    assert means == [False, True, False]
    assert found["logits"].signed


@pytest.mark.parametrize("signed", [True, False])
def test_the_data_decide_whether_the_input_is_signed(signed):
    x = images(8)
    model = quantize(model_of(conv("a")), calibration_data=x if signed else abs(x))
    assert model.get_layer("image_quantize").signed == signed


def test_a_softmax_has_the_runtimes_grid():
    for function in (
        lambda x: layers.Dense(4, activation="softmax", name="d")(layers.Flatten()(x)),
        lambda x: layers.Softmax(name="d_softmax")(
            layers.Dense(4, name="d")(layers.Flatten()(x))
        ),
        lambda x: layers.Activation("softmax", name="d_softmax")(conv("d")(x)),
    ):
        model = quantize(model_of(function), bits=4)
        (name,) = model.output_names
        layer = model.get_layer(name)
        assert (layer.bits, layer.signed, float(layer.step)) == (8, False, 1 / 256)
        assert f"{name}/activation_quantizer/step_change" not in [
            v.path for v in model.trainable_variables
        ]


# Bits.


def weights(found):
    return {n: s.bits.weight_bits for n, s in found.items() if s.kind == "convolution"}


def outputs(found):
    kinds = ("input", "convolution", "new_scale")
    return {n: s.bits.activation_bits for n, s in found.items() if s.kind in kinds}


def test_first_and_last_layers_have_8_bits():
    found = sites(residual, 3)
    assert weights(found) == {"stem": 8, "ac": 3, "vgg": 3, "logits": 8}
    # What the logits read is the mean, whose input keeps the bits asked for.
    edges = {"image": 8, "mean": 8, "logits": 8}
    assert outputs(found) == {"stem": 3, "ac": 3, "vgg": 3, "add": 3, **edges}

    def heads(x):
        first = [conv("f0")(layers.MaxPooling2D(2)(x)), conv("f1", strides=2)(x)]
        x = conv("middle")(layers.Add(name="sum")(first))
        a = layers.Flatten()(layers.ReLU()(conv("h0")(x)))
        return [a, layers.Add(name="end")([conv("h1")(x), conv("h2")(x)])]

    found = sites(heads, 5)
    ends = {name: 8 for name in ("f0", "f1", "h0", "h1", "h2")}
    assert weights(found) == {**ends, "middle": 5}
    ends = {name: 8 for name in ("image", "middle", "h0", "h1", "h2", "end")}
    assert outputs(found) == {"f0": 5, "f1": 5, "sum": 5, **ends}


def test_rules_override_and_later_ones_win():
    rules = {
        "*": {"weight_bits": 6},
        "a?": {"weight_bits": 2, "activation_bits": 3, "per_channel": False},
        "stem": {"weight_bits": 5},
        "logits": {"activation_bits": 7},
    }
    found = sites(residual, 4, rules)
    assert weights(found) == {"stem": 5, "ac": 2, "vgg": 6, "logits": 6}
    assert outputs(found)["ac"] == 3 and outputs(found)["logits"] == 7
    assert [found[n].bits.per_channel for n in ("ac", "vgg")] == [False, True]
    backwards = dict(reversed(rules.items()))
    assert weights(sites(residual, 4, backwards)) == {n: 6 for n in weights(found)}
    assert weights(sites(residual, 4, list(rules.items()))) == weights(found)


def test_rules_reach_the_quantized_model():
    rules = [("vgg", {"weight_bits": 3, "per_channel": False}), ("add", {"activation_bits": 5})]
    model = quantize(model_of(residual), bits=6, rules=rules)
    quantizers = find(model)
    assert {name: q.bits for name, q in quantizers.items()} == {
        "image_quantize/activation": 8,
        "stem/weight": 8,
        "stem_quantize/activation": 6,
        "ac/weight": 6,
        "ac_quantize/activation": 6,
        "vgg/weight": 3,
        "vgg_quantize/activation": 6,
        "add/activation": 5,
        "mean/activation": 8,
        "logits_operator/weight": 8,
        "logits/activation": 8,
    }
    assert quantizers["vgg/weight"].channels is None
    assert quantizers["ac/weight"].channels == 8


def test_a_group_takes_the_most_bits_of_its_members():
    found = sites(concatenated, 4, {"sum": {"activation_bits": 6}})
    assert {found[n].bits.activation_bits for n in ("a", "sum", "cat", "pool")} == {8}
    # "last" reads the group, which is therefore at an edge; a rule may say otherwise.
    found = sites(concatenated, 4, {"a": {"activation_bits": 3}, "sum": {"activation_bits": 6}})
    assert {found[n].bits.activation_bits for n in ("a", "sum", "cat", "pool")} == {6}


@pytest.mark.slow
def test_bits_of_weights_and_of_activations():
    model = quantize(model_of(residual), weight_bits=2, activation_bits=5)
    quantizers = find(model)
    assert quantizers["ac/weight"].bits == 2
    assert quantizers["ac_quantize/activation"].bits == 5
    model = quantize(model_of(residual), bits=6, weight_bits=3)
    quantizers = find(model)
    assert quantizers["ac/weight"].bits == 3
    assert quantizers["ac_quantize/activation"].bits == 6


BAD_RULES = {
    "rule 'nothing' matches no layer": {"nothing": {"weight_bits": 4}},
    "these are: image, stem, ac, vgg, add, mean, logits": {"relu": {"activation_bits": 4}},
    r"settings must be among .* Received: \['bits'\]": {"ac": {"bits": 4}},
    "rule 'ac': weight_bits must be .* Received: 1": {"ac": {"weight_bits": 1}},
    "rule 'ac': weight_bits must be .* Received: 9": {"ac": {"weight_bits": 9}},
    "rule 'ac': activation_bits .* Received: '4'": {"ac": {"activation_bits": "4"}},
    "rules must be pairs": [("ac",)],
    r"rules must be pairs.*Received: \('ac', 4\)": {"ac": 4},
}


@pytest.mark.parametrize(("message", "rules"), BAD_RULES.items())
def test_bad_rules_are_refused(message, rules):
    with pytest.raises(ValueError, match=message):
        sites(residual, 4, rules)


@pytest.mark.parametrize("bits", [0, 1, 9, 17, 4.5, "4", "eight", True])
@pytest.mark.parametrize("argument", ["bits", "weight_bits", "activation_bits"])
def test_bad_bits_are_refused(argument, bits):
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8"):
        quantize(model_of(residual), **{argument: bits})


def test_bad_bn_statistics_are_refused():
    with pytest.raises(ValueError, match="bn_statistics must be one of .*'exact'"):
        quantize(model_of(residual), bn_statistics="exact")


# What cannot be quantized.


class Louder(layers.Conv2D):
    """A stock layer's subclass that computes something else."""

    def call(self, x):
        return 3 * super().call(x)


def named(layer):
    return lambda x: layer(x)


def test_what_a_prelu_alone_reads_has_eight_bits():
    def prelu(name):
        return layers.PReLU(shared_axes=[1, 2], name=name)

    def function(x):
        x = conv("edge", 4)(x)
        alone = prelu("p")(layers.MaxPooling2D(2, name="pool")(conv("alone", 4)(x)))
        shared = conv("shared", 4)(alone)
        both = layers.Add(name="both")([prelu("q")(shared), shared])
        return conv("last", 4)(conv("before", 4, 1)(both))

    bits = {name: site.bits.activation_bits for name, site in sites(function, 3).items()}
    assert (bits["alone"], bits["pool"], bits["p"]) == (8, 8, 3)
    assert (bits["shared"], bits["q"], bits["both"]) == (3, 3, 3)
    ruled = sites(function, 3, rules={"alone": {"activation_bits": 5}})
    assert ruled["alone"].bits.activation_bits == 5
    # A PReLU's results are rarely negative, and of 3 bits one level counts; a sum's are not.
    mirrored = {bits: sites(function, bits) for bits in (4, 3, 2)}
    assert [name for name, site in mirrored[3].items() if site.mirrored] == ["p", "q"]
    assert [name for name, site in mirrored[2].items() if site.mirrored] == ["p", "q"]
    assert not any(site.mirrored for site in mirrored[4].values())


def test_layers_of_several_operators():
    def function(x):
        x = conv("a", 6, activation="silu")(x)
        x = layers.ReLU(name="r")(SqueezeExcite(2, name="se")(conv("b", 6)(x)))
        x = conv("c", 4, activation="hard_swish")(x)
        return conv("last", 4)(conv("before", 4, 1)(x))

    found = sites(function)
    kinds = {name: site.kind for name, site in found.items() if name != "image"}
    assert kinds == {
        **{"a": "convolution", "a_silu_gate": "fixed", "a_silu": "new_scale"},
        **{"b": "convolution", "se_mean": "new_scale", "se_reduce": "convolution"},
        **{"se_expand": "convolution", "se_gate": "fixed", "se": "new_scale"},
        **{"c": "convolution", "c_hard_silu_gate": "fixed", "c_hard_silu": "new_scale"},
        **{"before": "convolution", "last": "convolution"},
    }
    assert found["c_hard_silu"].inputs == ["c", "c_hard_silu_gate"]
    assert (found["se"].activation, found["se"].fused) == ("relu", ["r"])
    bits = {name: site.bits.activation_bits for name, site in found.items()}
    wide = ("a", "b", "c", "se_expand")  # what is read by gates and products alone
    narrow = ("a_silu", "se_mean", "se_reduce", "se", "c_hard_silu")
    assert {bits[name] for name in wide} == {8} and {bits[name] for name in narrow} == {4}
    assert [name for name in bits if not found[name].signed] == [
        *("a_silu_gate", "se_reduce", "se_gate", "se", "c_hard_silu_gate")
    ]


def prelu_twice(x):
    shared = layers.PReLU(shared_axes=[1, 2], name="bad")
    return shared(shared(conv("a")(x)))


REFUSED = {
    "transposed with unequal strides": named(layers.Conv2DTranspose(4, 3, (1, 2), name="bad")),
    "transposed with output padding": named(
        layers.Conv2DTranspose(4, 3, 2, output_padding=1, name="bad")
    ),
    "layer norm": named(layers.LayerNormalization(name="bad")),
    "block of another function": named(ACBlock(4, activation="glu", name="bad")),
    "constants of pixels": lambda x: layers.Rescaling(np.ones((8, 8, 1)), name="bad")(
        conv("a")(x)
    ),
    "product of other ranks": lambda x: layers.Multiply(name="bad")(
        [conv("a")(x), layers.GlobalAveragePooling2D()(conv("b")(x))]
    ),
    "sloped relu with a limit": named(layers.ReLU(6.0, negative_slope=0.1, name="bad")),
    "prelu of each pixel": named(layers.PReLU(name="bad")),
    "prelu of each row": named(layers.PReLU(shared_axes=[2], name="bad")),
    "relu with a threshold": named(layers.ReLU(threshold=0.5, name="bad")),
    "relu3": named(layers.ReLU(3.0, name="bad")),
    "channels first": named(conv("bad", data_format="channels_first")),
    "batch norm of rows": lambda x: layers.BatchNormalization(axis=1, name="bad")(conv("a")(x)),
    "lambda": named(layers.Lambda(lambda x: 2 * x, name="bad")),
    "bicubic upsampling": named(layers.UpSampling2D(interpolation="bicubic", name="bad")),
    "prelu called twice": prelu_twice,
    "dense on features": named(layers.Dense(4, name="bad")),
    "embedding": flat(layers.Embedding(10, 4, name="bad")),
}


def test_all_that_is_in_the_way_is_named_at_once():
    def function(x):
        for name in ("n1", "n2"):
            x = layers.LayerNormalization(name=name)(conv(f"{name}_conv")(x))
        x = keras.ops.sin(layers.MultiHeadAttention(1, 2, name="a")(x, x))
        x = layers.LSTM(4, name="l")(layers.Reshape((-1, 4))(x))
        x = layers.Lambda(lambda x: 2 * x, name="f")(x)
        return layers.UnitNormalization(1, name="u")(x)

    expected = (
        r"^7 layers cannot be quantized:\n"
        r"  layers 'n1', 'n2' \(LayerNormalization\): .*; its mean .* BatchNormalization .*\n"
        r"  layer 'a' \(MultiHeadAttention\): .*; the file has no product .*\n"
        r"  layer 'sin\w*' \(the operation Sin\): .*; no layer means the same; .*\n"
        r"  layer 'l' \(LSTM\): .*; the file has no loop over time; .* causal convolutions.*\n"
        r"  layer 'f' \(Lambda\): .*; write what it computes with keras.ops .*\n"
        r"  layer 'u' \(UnitNormalization\): its axis must be -1, .*: 1$"
    )
    with pytest.raises(ValueError, match=expected):
        quantize(model_of(function))


def test_padded_pooling_of_images_of_any_size_is_refused_by_name():
    def function(x):
        return layers.AveragePooling2D(2, padding="same", name="bad")(conv("a")(x))

    with pytest.raises(
        ValueError, match="^layer 'bad_operator': padding=\"same\" with strides"
    ):
        quantize(model_of(function, (None, None, 3)), calibration_data=images(4))
    nested = model_of(
        lambda x: model_of(function, (None, None, 3))(x)
    )  # the size is known here
    assert quantize(nested).output_shape == (None, 5, 5, 4)


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_quantized_is_refused_by_name(function):
    with pytest.raises(ValueError, match=r"bad"):
        quantize(model_of(function))


WRONGLY_ACCEPTED = {
    "subclass of a stock layer": named(Louder(4, 3, name="bad")),
    "channels-first mean": named(
        layers.GlobalAveragePooling2D(data_format="channels_first", name="bad")
    ),
    "channels-first pooling": named(
        layers.MaxPooling2D(2, data_format="channels_first", name="bad")
    ),
    "softmax over rows": named(layers.Softmax(axis=1, name="bad")),
}


@pytest.mark.parametrize("function", WRONGLY_ACCEPTED.values(), ids=WRONGLY_ACCEPTED.keys())
def test_what_would_change_its_meaning_is_refused_by_name(function):
    with pytest.raises(ValueError, match=r"layer 'bad"):
        quantize(model_of(function))


def test_what_is_quantized_already_is_refused():
    model = quantize(model_of(residual))
    with pytest.raises(ValueError, match="Quantize|quantized already"):
        quantize(model)
    block = keras.Model(x := keras.Input(SHAPE), ACBlock(4, weight_bits=8, name="bad")(x))
    with pytest.raises(ValueError, match="'bad' .*quantized already"):
        quantize(block)


def test_blocks_keep_their_kind_and_options():
    def function(x):
        x = ACBlock(6, 3, strides=2, padding=1, epsilon=1e-3, momentum=0.5, name="ac")(x)
        x = layers.Conv2D(6, (3, 2), strides=(2, 1), groups=3, use_bias=False, name="c")(x)
        x = layers.BatchNormalization(epsilon=0.01, momentum=0.7, name="bn")(x)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="dw")(x)
        return conv("last")(x)

    model = quantize(model_of(function))
    ac, c, dw = (model.get_layer(name) for name in ("ac", "c", "dw"))
    assert (ac.strides, ac.padding, ac.epsilon, ac.momentum) == ((2, 2), 1, 1e-3, 0.5)
    assert (c.kernel_size, c.strides, c.groups, c.padding) == ((3, 2), (2, 1), 3, "valid")
    assert isinstance(c, ConvBNBlock) and not c.use_bias
    assert (c.epsilon, c.momentum) == (0.01, 0.7)
    assert (dw.filters, dw.groups, dw.padding) == (12, 6, "same")
    for layer in model.layers:
        assert isinstance(layer, ReparamConv | Quantize | QuantizedAdd | layers.InputLayer)
