"""Layers that become several: the names of their parts, and rules for them."""

import numpy as np
import pytest

from repq_tf.graphs import read_graph
from repq_tf.layers import SqueezeExcite
from repq_tf.quantization.expand import expand
from repq_tf.quantization.placement import place
from repq_tf.quantization.rules import LayerBits, check_rules
from repq_tf.quantizers import find
from tests.quantization.networks import array, images, layers, network, quantize


def conv(name, **options):
    return layers.Conv2D(4, 3, padding="same", name=name, **options)


def chain(names):
    """A network with layers of these names behind those that become several."""
    names = iter(names)

    def function(x):
        x = conv(next(names))(conv("conv", activation="silu")(x))
        x = layers.ReLU(name=next(names))(layers.Activation("silu", name="act")(x))
        x = SqueezeExcite(2, name="se")(x)
        for _ in range(4):
            x = conv(next(names))(x)
        x = layers.Add(name=next(names))([x, conv("other")(x)])
        shared = layers.Concatenate(name="cat")([conv("a")(x), conv("b")(x)])
        return conv(next(names))(shared)

    return network(function)


@pytest.mark.slow
def test_parts_do_not_take_the_names_of_other_layers():
    taken = ["conv_silu", "act_gate", "se_mean", "se_reduce", "se_expand", "se_gate"]
    taken += ["conv_silu_gate", "a_quantize"]
    x = images(8)
    model, same = chain(taken), chain([f"free{k}" for k in range(len(taken))])
    same.set_weights(model.get_weights())
    found = quantize(model, calibration_data=x)
    assert set(taken) < {layer.name for layer in found.layers} | {"act_gate"}  # a fused ReLU
    np.testing.assert_array_equal(array(found(x)), array(quantize(same, calibration_data=x)(x)))
    want = array(model(x))
    assert np.abs(array(found(x)) - want).max() < 0.1 * np.abs(want).max()


@pytest.fixture(scope="module")
def composite():
    def function(x):
        x = conv("conv", activation="silu")(conv("first")(x))
        x = conv("next")(SqueezeExcite(2, name="se")(x))
        x = layers.Dense(3, activation="softmax", name="scores")(layers.Flatten()(x))
        return x

    return network(function)


def settings(model, rules):
    """`(weight_bits, activation_bits)` of every site; the default is (6, 5)."""
    placement = place(
        expand(read_graph(model)), LayerBits(6, 5), check_rules(rules), {"image": True}
    )
    return {
        name: (site.bits.weight_bits, site.bits.activation_bits)
        for name, site in placement.sites.items()
    }


RULES = {
    # A convolution with silu: "conv" makes what only the gate and the product read.
    "conv activations": ({"conv": {"activation_bits": 4}}, {"conv_silu": (6, 4)}),
    "conv weights": ({"conv": {"weight_bits": 3}}, {"conv": (3, 8)}),
    "both": (
        {"conv*": {"weight_bits": 3, "activation_bits": 4}},
        {"conv": (3, 8), "conv_silu": (3, 4)},
    ),
    "its part": ({"conv_silu": {"activation_bits": 3}}, {"conv_silu": (6, 3)}),
    "se activations": ({"se": {"activation_bits": 4}}, {"se": (6, 4)}),
    "se weights": ({"se": {"weight_bits": 4}}, {"se_reduce": (4, 5), "se_expand": (4, 8)}),
    "a part of se": ({"se_reduce": {"weight_bits": 2}}, {"se_reduce": (2, 5)}),
    "inner features": ({"se_[mr]e*": {"activation_bits": 7}}, dict(se_mean=7, se_reduce=7)),
    "floats": (
        {"se": {"activation_bits": None}},
        {name: None for name in ("se_mean", "se_reduce", "se_expand", "se_gate", "se")},
    ),
    # The runtime prescribes the softmax's grid; what can be chosen is that of what it reads.
    "scores": ({"scores": {"activation_bits": 7}}, {"scores": (8, 7)}),
}


@pytest.mark.parametrize(("rules", "changed"), RULES.values(), ids=RULES.keys())
def test_a_rule_for_a_layer_reaches_its_weights_and_its_output(composite, rules, changed):
    before, after = settings(composite, ()), settings(composite, rules)
    with_kernels = ("first", "conv", "se_reduce", "se_expand", "next", "scores")
    for name, (weight, activation) in before.items():
        new = changed.get(name, (weight, activation))
        new = new if isinstance(new, tuple) else (weight, new)
        assert after[name][1] == new[1], name
        if name in with_kernels:
            assert after[name][0] == new[0], name


@pytest.mark.parametrize("rank", [1, 2])
def test_a_rule_for_a_separable_convolution_reaches_both_its_kernels(rank):
    shape = (8, 3) if rank == 1 else (8, 8, 3)
    kind = getattr(layers, f"SeparableConv{rank}D")
    model = network(lambda x: kind(4, 3, name="v")(x), shape)
    qat = quantize(model, calibration_data=images(8, shape), rules={"v": {"weight_bits": 4}})
    found = [layer.weight_quantizer.bits for layer in qat.layers if hasattr(layer, "inner")]
    assert found == [4, 4]


def test_layers_in_floating_point_keep_all_their_parts_so(composite):
    floats = {"weight_bits": None, "activation_bits": None}
    found = quantize(composite, rules={"se": floats, "conv": floats})
    names = {name.split("/")[0].removesuffix("_quantize") for name in find(found)}
    assert names == {"image", "first", "next", "scores_operator", "scores"}
    x = images(8)
    assert np.abs(array(found(x)) - array(composite(x))).max() < 0.1
