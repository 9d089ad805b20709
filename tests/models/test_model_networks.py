"""The networks: shapes, stems, geometry, initial values, training."""

import functools

import numpy as np
import pytest

import repq_tf
from repq_tf import models
from repq_tf.keras_api import keras
from repq_tf.layers import (
    ACBlock,
    ConvBNBlock,
    DiverseBranchBlock,
    MobileOneBlock,
    OREPABlock,
    OREPARepVGGBlock,
    OREPAStem,
    QARepVGGBlock,
    RepVGGBlock,
    SqueezeExcite,
)
from repq_tf.models.parts import scale_channels
from tests.branches.expressions import randomize
from tests.marks import slow
from tests.models.outline import blocks, outline


@functools.cache  # building takes longer than what is asked of a network here
def tiny(name, input_shape=(8, 8, 1), width=0.125):
    return models.build(name, classes=3, input_shape=input_shape, width=width)


def tiny_outline(name, input_shape=(8, 8, 1), width=0.125):
    """The same without values, for what only layers and shapes tell."""
    return outline(name, classes=3, input_shape=input_shape, width=width)


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
    model = tiny_outline("resnet18", (side, side, 3))
    assert sides(model) == RESNET_SIDES[side]
    assert model.output.shape == (None, 3)
    layers = [layer.name for layer in model.layers]
    assert ("stem_pool" in layers) == (side > 64)


@pytest.mark.parametrize("side", REPVGG_SIDES)
def test_repvgg_feature_maps(side):
    model = tiny_outline("repvgg_a0_plain", (side, side, 3))
    assert sides(model) == REPVGG_SIDES[side]
    assert model.output.shape == (None, 3)


def test_the_shorter_side_chooses_the_stem():
    assert "stem_pool" not in [
        layer.name for layer in tiny_outline("resnet18", (64, 96, 3)).layers
    ]
    assert tiny_outline("repvgg_a0_plain", (64, 96, 3)).get_layer("stem").strides == (1, 1)


@pytest.mark.slow
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


# Classes of the 1x1, 3x3 and 7x7 convolutions, and of projection shortcuts.
RESNET_BLOCKS = {
    "ac_resnet50": (ConvBNBlock, ACBlock, ConvBNBlock, ConvBNBlock),
    "dbb_resnet18": (ConvBNBlock, DiverseBranchBlock, ConvBNBlock, ConvBNBlock),
    "orepa_resnet18": (OREPABlock, OREPABlock, OREPAStem, ConvBNBlock),
    "orepa_resnet50": (OREPABlock, OREPABlock, OREPAStem, OREPABlock),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNET_BLOCKS)
def test_resnets_are_made_of_their_blocks(name):
    pointwise, square, stem, shortcut = RESNET_BLOCKS[name]
    model = tiny_outline(name, (66, 66, 3))
    shortcuts = 4 if name.endswith("50") else 3
    depth = int(name[-2:])
    assert len(blocks(model)) == depth - 1 + shortcuts
    for block in blocks(model):
        expected = {1: pointwise, 3: square, 7: stem}[block.kernel_size[0]]
        if block.name.endswith("shortcut"):
            expected = shortcut
        assert type(block) is expected, block.name
    assert type(tiny_outline(name).get_layer("stem")) is square


def test_bottlenecks_have_their_stride_in_the_middle():
    model = tiny_outline("resnet50", (64, 64, 3), width=1 / 8)
    first = [model.get_layer(f"stage2_block1_{part}") for part in ("conv1", "conv2", "conv3")]
    assert [block.kernel_size[0] for block in first] == [1, 3, 1]
    assert [block.strides[0] for block in first] == [1, 2, 1]
    assert [block.filters for block in first] == [16, 16, 64]
    activations = [block.activation.__name__ for block in first]
    assert activations == ["relu", "relu", "linear"]
    assert model.get_layer("stage2_block1_shortcut").strides == (2, 2)
    assert model.get_layer("stage1_block1_shortcut").strides == (1, 1)
    assert sides(model) == [64, 32, 16, 8]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("qarepvgg_a0", QARepVGGBlock), ("orepa_repvgg_a0", OREPARepVGGBlock)],
)
def test_descendants_of_repvgg_are_repvggs_of_another_block(name, kind):
    model, repvgg = tiny_outline(name), tiny_outline("repvgg_a0")
    assert [layer.name for layer in model.layers] == [layer.name for layer in repvgg.layers]
    assert {type(block) for block in blocks(model)} == {kind}


def test_repvgg_d2se_squeezes_between_block_and_relu():
    model = tiny_outline("repvgg_d2se")
    assert len(blocks(model)) == 1 + 8 + 14 + 24 + 1
    assert [layer.name for layer in model.layers][1:5] == [
        *("stem", "stem_se", "stem_relu", "stage1_block1")
    ]
    assert {block.activation.__name__ for block in blocks(model)} == {"linear"}
    filters = 8 * round(2560 * 0.125 / 8)
    assert model.get_layer("stage4_block1_se").reduced == filters // 16


def test_mobileone_is_made_of_pairs():
    model = tiny_outline("mobileone_s0", (224, 224, 3))
    assert sides(model) == REPVGG_SIDES[224]
    stem, *pairs = blocks(model)
    assert type(stem) is MobileOneBlock and stem.branches == 1
    assert len(pairs) == 2 * (2 + 8 + 10 + 1)
    for depthwise, pointwise in zip(pairs[::2], pairs[1::2], strict=True):
        assert depthwise.kernel_size == (3, 3) and pointwise.kernel_size == (1, 1)
        channels = depthwise.input.shape[-1]
        assert depthwise.groups == depthwise.filters == channels
        assert pointwise.groups == 1 and pointwise.strides == (1, 1)
    assert {block.branches for block in pairs} == {4}


@pytest.mark.slow
def test_mobileone_s4_squeezes_its_last_six_pairs():
    model = tiny_outline("mobileone_s4")
    squeezed = [layer.name for layer in model.layers if isinstance(layer, SqueezeExcite)]
    pairs = [f"stage3_block{index}" for index in range(6, 11)] + ["stage4_block1"]
    parts = ("depthwise_se", "pointwise_se")
    assert squeezed == [f"{pair}_{part}" for pair in pairs for part in parts]
    assert not any(
        isinstance(layer, SqueezeExcite) for layer in tiny_outline("mobileone_s0").layers
    )


@pytest.mark.slow
def test_groups_are_on_even_layers():
    groups = [block.groups for block in blocks(tiny_outline("repvgg_b1g4"))]
    assert groups == [1] + [1, 4] * 13 + [1]


@pytest.mark.parametrize("name", ["resnet18", "repvgg_b0_plain"])
def test_padding_is_half_the_kernel_on_every_side(name):
    for block in blocks(tiny_outline(name, (224, 224, 3))):
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
    model = tiny_outline("ac_resnet18")
    assert model.name == "ac_resnet18"
    names = {layer.name for layer in model.layers}
    assert {"stem", "stage1_block1_conv1", "stage2_block1_shortcut", "logits"} <= names
    assert "stage1_block1_shortcut" not in names
    assert [layer.name for layer in tiny_outline("repvgg_a0").layers][:4] == [
        *("image", "stem", "stage1_block1", "stage1_block2")
    ]


@pytest.mark.parametrize(
    "name",
    [
        "ac_resnet18",
        slow("orepa_resnet50"),
        "repvgg_a0",
        "repvgg_b1g4",
        slow("mobileone_s4"),
    ],
)
def test_plain_twin_is_the_same_network(name):
    model, twin = tiny_outline(name), tiny_outline(models.plain_twin(name))
    assert [layer.name for layer in model.layers] == [layer.name for layer in twin.layers]
    for block, plain in zip(blocks(model), blocks(twin), strict=True):
        assert type(plain) is ConvBNBlock
        for setting in ("filters", "kernel_size", "strides", "padding", "groups", "activation"):
            assert getattr(block, setting) == getattr(plain, setting), block.name


def test_outputs_are_logits():
    head = tiny_outline("resnet18").get_layer("logits")
    assert head.activation is keras.activations.linear


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ac_resnet18",
        "dbb_resnet18",
        "orepa_resnet18",
        "repvgg_a0",
        "qarepvgg_a0",
        "mobileone_s4",
    ],
)
def test_two_steps_move_every_weight(name):
    """Two: OREPA's prior starts with a vector of zeros, which stops the first gradient."""
    model = models.build(name, classes=3, input_shape=(8, 8, 1), width=0.125)
    before = [np.asarray(variable) for variable in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    for _ in range(2):
        assert np.isfinite(model.train_on_batch(images, np.arange(16) % 3))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = np.asarray(variable)
        assert np.isfinite(new).all() and (new != old).any(), variable.path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["orepa_resnet50", "mobileone_s4"])
def test_merging_keeps_the_function(name):
    model = models.build(name, classes=3, input_shape=(66, 66, 3), width=0.05)
    for block in blocks(model):
        randomize(block.expression, seed=0, dead=False)
    images = np.random.default_rng(0).normal(size=(2, 66, 66, 3)).astype("float32")
    merged, logits = repq_tf.merge(model), np.asarray(model(images))
    assert not blocks(merged)
    np.testing.assert_allclose(merged(images), logits, atol=1e-4 * abs(logits).max())


@pytest.mark.slow
def test_save_and_load(tmp_path):
    model = tiny("ac_resnet18")
    path = tmp_path / "model.keras"
    model.save(path)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    loaded = keras.models.load_model(path)
    assert loaded.name == "ac_resnet18"
    np.testing.assert_array_equal(np.asarray(loaded(images)), np.asarray(model(images)))
