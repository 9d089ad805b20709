"""Networks of microcontrollers: MLPerf Tiny's ResNet8, and a chain of RepVGG's blocks."""

import math

import keras
import numpy as np
import pytest

from repq_tf import models
from repq_tf.branches import OABN
from repq_tf.reparameterization import merge
from tests.branches.expressions import randomize
from tests.models.outline import blocks

TWINS = ["ac_resnet8", "dbb_resnet8", "orepa_resnet8", "repvgg_resnet8"]
WIDTHS = [3, *[16] * 4, *[32] * 3, *[64] * 3]


def build(name):
    return models.build(name, classes=10, input_shape=(32, 32, 3))


def resnet_v1_eembc():
    """The benchmark's keras_model.py, batch norms folded, without its softmax."""
    layers = keras.layers

    def conv(x, channels, name, size=3, strides=1):
        return layers.Conv2D(channels, size, strides, "same", name=name)(x)

    images = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv(images, 16, "stem"))
    for stage, channels, strides in ((1, 16, 1), (2, 32, 2), (3, 64, 2)):
        y = layers.ReLU()(conv(x, channels, f"stage{stage}_conv1", strides=strides))
        y = conv(y, channels, f"stage{stage}_conv2")
        if strides > 1:
            x = conv(x, channels, f"stage{stage}_shortcut", 1, strides)
        x = layers.ReLU()(layers.add([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(images, layers.Dense(10, name="logits")(x))


def test_resnet8_is_the_benchmarks(rng):
    model, reference = build("resnet8"), resnet_v1_eembc()
    assert model.count_params() == 78_666
    assert reference.count_params() == 77_706
    for block in blocks(model):
        randomize(block.inner, rng)
    macs = 640
    for layer in reference.layers:
        if layer.name == "logits":
            layer.set_weights(model.get_layer("logits").get_weights())
        elif layer.weights:
            affine = model.get_layer(layer.name).merge()
            layer.set_weights([np.array(affine.kernel), np.array(affine.bias)])
            macs += math.prod(layer.output.shape[1:3]) * math.prod(affine.kernel.shape)
    assert macs == 12_501_632
    x = rng.normal(size=(4, 32, 32, 3)).astype("float32")
    expected = reference(x)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(model(x), expected, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_every_twin_deploys_as_resnet8(name):
    merged, plain = merge(build(name)), merge(build("resnet8"))
    assert [w.shape for w in merged.weights] == [w.shape for w in plain.weights]
    assert merged.count_params() == 77_706


@pytest.mark.parametrize("name", ["repvgg_tiny", "oabn_repvgg_tiny"])
def test_a_chain_has_identities_wherever_shapes_allow(name):
    model = build(name)
    assert [block.filters for block in blocks(model)] == WIDTHS[1:]
    assert [block.strides[0] for block in blocks(model)] == [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]
    pairs = list(zip(WIDTHS, WIDTHS[1:], strict=False))
    kernels = sum(10 * inputs * outputs + 8 * outputs for inputs, outputs in pairs)
    identities = sum(4 * outputs for inputs, outputs in pairs if inputs == outputs)
    assert model.count_params() == kernels + identities + 650
    kinds = {type(node) for block in blocks(model) for node in block.merged_batch_norms}
    assert (OABN in kinds) == (name == "oabn_repvgg_tiny")
