"""How far the runtime's reference kernels are from the model, which computes as XNNPACK.

They rescale a sum twice: to a whole number, times a number in (1/2, 1], and then by a power
of two. With few bits that power is small, and the first rounding tells: given the same input,
an operator of theirs is at most one step off, in 3 % of the values at 8 bits, in 10 % at 4.
"""

import keras
import pytest

import repq_tf
from repq_tf.layers import ACBlock, RepVGGBlock
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import images, layers, network, quantize

X = images(32)


def every_operator(x):
    start = keras.initializers.RandomUniform(-0.5, 1.2, seed=0)
    x = layers.Conv2D(6, 3, padding="same", name="a")(x)
    x = layers.PReLU(start, shared_axes=[1, 2], name="p")(x)
    y = layers.LeakyReLU(0.1, name="l")(RepVGGBlock(6, name="vgg")(x))
    x = layers.Add(name="s")([x, ACBlock(6, activation="relu6", name="ac")(y)])
    x = layers.Concatenate(name="cat")([x, y])
    x = layers.UpSampling2D(2, interpolation="bilinear", name="u")(x)
    x = layers.AveragePooling2D(3, 2, name="v")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="d")(x)
    return layers.Dense(5, name="f")(layers.GlobalAveragePooling2D(name="m")(x))


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "share"), [(8, 0.04), (4, 0.12)])
def test_reference_kernels_are_one_step_off(bits, share, tmp_path):
    qat = quantize(network(every_operator), bits=bits)
    _, report = parity(qat, tmp_path / "x.tflite", X)
    assert_exact(report)
    reference = repq_tf.check_parity(qat, tmp_path / "x.tflite", X, kernels="reference")
    print(reference)
    names = [row.name for row in reference.layers]
    assert {"a", "p", "l", "vgg", "s", "ac", "u", "v", "d", "m", "f"} <= set(names)
    for row in reference.layers:
        assert row.largest <= 1 and row.share <= share, row
    if bits == 8:  # from end to end, where the roundings of all layers add up
        assert reference.largest_difference <= 2
