"""Layers that become several: the names of their parts."""

import numpy as np

from repq_tf.layers import SqueezeExcite
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
