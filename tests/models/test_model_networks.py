"""The networks: shapes, stems, geometry, initial values, training."""

import functools

import numpy as np
import pytest

from repq_tf import models
from repq_tf.keras_api import keras
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from repq_tf.models.classifier import scale_channels


@functools.cache  # building takes longer than what is asked of a network here
def tiny(name, input_shape=(8, 8, 1), width=0.125):
    return models.build(name, classes=3, input_shape=input_shape, width=width)


def blocks(model):
    return [layer for layer in model.layers if hasattr(layer, "merge")]


def sides(model):
    """The heights of the feature maps, whenever they change."""
    heights = [model.input.shape[1]]
    for layer in model.layers:
        if len(layer.output.shape) == 4 and not layer.name.endswith("_pad"):
            if layer.output.shape[1] != heights[-1]:
                heights.append(layer.output.shape[1])
    return heights


RESNET_SIDES = {
    224: [224, 112, 56, 28, 14, 7],
    65: [65, 33, 17, 9, 5, 3],
    64: [64, 32, 16, 8],
    32: [32, 16, 8, 4],
    8: [8, 4, 2, 1],
}
REPVGG_SIDES = {
    224: [224, 112, 56, 28, 14, 7],
    65: [65, 33, 17, 9, 5, 3],
    64: [64, 32, 16, 8, 4],
    32: [32, 16, 8, 4],
    16: [16, 8, 4],
    9: [9, 5, 3],
    8: [8, 4, 2],
}


@pytest.mark.parametrize("side", RESNET_SIDES)
def test_resnet_feature_maps(side):
    model = tiny("resnet18", (side, side, 3))
    assert sides(model) == RESNET_SIDES[side]
    assert model.output.shape == (None, 3)
    layers = [layer.name for layer in model.layers]
    assert ("stem_pool" in layers) == (side > 64)


@pytest.mark.parametrize("side", REPVGG_SIDES)
def test_repvgg_feature_maps(side):
    model = tiny("repvgg_a0_plain", (side, side, 3))
    assert sides(model) == REPVGG_SIDES[side]
    assert model.output.shape == (None, 3)


def test_the_shorter_side_chooses_the_stem():
    assert "stem_pool" not in [layer.name for layer in tiny("resnet18", (64, 96, 3)).layers]
    assert tiny("repvgg_a0_plain", (64, 96, 3)).get_layer("stem").strides == (1, 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ac_resnet18", (8, 8, 1)),
        ("repvgg_a0", (8, 8, 1)),
        ("ac_resnet18", (32, 32, 3)),
        ("resnet18", (224, 224, 3)),
        ("repvgg_a0_plain", (224, 224, 3)),
    ],
)
def test_runs(name, shape):
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    logits = keras.ops.convert_to_numpy(tiny(name, shape)(images))
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()
    assert np.ptp(logits) > 0


def test_ac_resnet18_is_made_of_asymmetric_blocks():
    model = tiny("ac_resnet18", (224, 224, 3))
    assert len(blocks(model)) == 20
    for block in blocks(model):
        expected = ACBlock if block.kernel_size == (3, 3) else ConvBNBlock
        assert type(block) is expected, block.name
    assert type(tiny("ac_resnet18").get_layer("stem")) is ACBlock


def test_groups_are_on_even_layers():
    groups = [block.groups for block in blocks(tiny("repvgg_b1g4"))]
    assert groups == [1] + [1, 4] * 13 + [1]


@pytest.mark.parametrize("name", ["resnet18", "repvgg_b0_plain"])
def test_padding_is_half_the_kernel_on_every_side(name):
    for block in blocks(tiny(name, (224, 224, 3))):
        half = block.kernel_size[0] // 2
        assert block.window((224, 224)) == ((half, half), (half, half)), block.name


def test_stem_pooling_is_padded_with_minus_infinity():
    model = tiny("resnet18", (224, 224, 3))
    stem = keras.Model(model.input, [model.get_layer(n).output for n in ("stem", "stem_pool")])
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    features, pooled = (np.asarray(y) for y in stem(images))
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    np.testing.assert_array_equal(pooled, windows[:, ::2, ::2].max(axis=(-2, -1)))


def test_names_can_be_read():
    model = tiny("ac_resnet18")
    assert model.name == "ac_resnet18"
    names = {layer.name for layer in model.layers}
    assert {"stem", "stage1_block1_conv1", "stage2_block1_shortcut", "logits"} <= names
    assert "stage1_block1_shortcut" not in names
    assert [layer.name for layer in tiny("repvgg_a0").layers][:4] == [
        *("image", "stem", "stage1_block1", "stage1_block2")
    ]


@pytest.mark.parametrize("name", ["ac_resnet18", "repvgg_a0", "repvgg_b1g4"])
def test_plain_twin_is_the_same_network(name):
    model, twin = tiny(name), tiny(models.plain_twin(name))
    assert [layer.name for layer in model.layers] == [layer.name for layer in twin.layers]
    for block, plain in zip(blocks(model), blocks(twin), strict=True):
        assert type(plain) is ConvBNBlock
        for setting in ("filters", "kernel_size", "strides", "padding", "groups", "activation"):
            assert getattr(block, setting) == getattr(plain, setting), block.name


def test_outputs_are_logits():
    head = tiny("resnet18").get_layer("logits")
    assert head.activation is keras.activations.linear


def test_width():
    assert [scale_channels(64, width) for width in (1, 0.5, 0.75, 0.19, 0.01)] == [
        *(64, 32, 48, 16, 8)
    ]
    filters = [block.filters for block in blocks(tiny("ac_resnet18"))]
    assert (filters[0], filters[-1]) == (8, 64)
    assert {block.filters for block in blocks(tiny("resnet18", width=0.001))} == {8}


def kernels(model, name):
    nodes = model.get_layer(name).expression.walk()
    return [np.asarray(node.kernel) for node in nodes if hasattr(node, "kernel")]


def test_initial_values_of_resnet():
    (kernel,) = kernels(tiny("resnet18", width=1), "stage3_block1_conv1")
    assert kernel.shape == (3, 3, 128, 256)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.01)
    assert abs(kernel).max() > 3 * kernel.std()  # not truncated


def test_initial_values_of_repvgg():
    square, pointwise = kernels(tiny("repvgg_b1g4"), "stage3_block2")
    assert square.shape == (3, 3, 16, 64)
    for kernel, fan_in in ((square, 9 * 16), (pointwise, 16)):
        assert abs(kernel).max() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert kernel.std() == pytest.approx((3 * fan_in) ** -0.5, rel=0.08)


def test_equal_shapes_start_from_different_values():
    model = tiny("repvgg_b1g4")
    assert type(model.get_layer("stage3_block2")) is RepVGGBlock
    first, second = (kernels(model, f"stage3_block{index}")[0] for index in (2, 4))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["ac_resnet18", "repvgg_a0"])
def test_one_step_moves_every_weight(name):
    keras.utils.set_random_seed(0)
    model = models.build(name, classes=3, input_shape=(8, 8, 1), width=0.125)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    assert np.isfinite(model.train_on_batch(images, np.arange(16) % 3))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = np.asarray(variable)
        assert np.isfinite(new).all() and (new != old).any(), variable.path


def test_save_and_load(tmp_path):
    model = tiny("ac_resnet18")
    path = tmp_path / "model.keras"
    model.save(path)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    loaded = keras.models.load_model(path)
    assert loaded.name == "ac_resnet18"
    np.testing.assert_array_equal(np.asarray(loaded(images)), np.asarray(model(images)))
