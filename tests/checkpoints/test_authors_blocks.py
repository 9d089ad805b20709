"""The authors' blocks, one at a time, with their names."""

import keras
import pytest

from repq_tf import layers
from tests.checkpoints import torch_blocks as blocks
from tests.checkpoints.reference import assert_loads, images, randomized

# Input channels, output channels, stride, groups.
SHAPES = {
    "same": (8, 8, 1, 1),
    "wider": (6, 12, 2, 1),
    "narrower": (12, 6, 1, 1),
    "grouped": (8, 8, 1, 2),
    "depthwise": (8, 8, 1, 8),
    "multiplied": (6, 12, 2, 6),
}

# Class here, class there, kernel sizes, shapes that the authors' class has.
FAMILIES = {
    "RepVGG": (layers.RepVGGBlock, blocks.RepVGG, (3,), SHAPES),
    "QARepVGG": (layers.QARepVGGBlock, blocks.QARepVGG, (3,), SHAPES),
    "MobileOne": (layers.MobileOneBlock, blocks.MobileOne, (1, 3), SHAPES),
    "ACB": (layers.ACBlock, blocks.ACB, (3, 5), SHAPES),
    "DBB": (layers.DiverseBranchBlock, blocks.DBB, (3, 5), SHAPES),
    "OREPA": (layers.OREPABlock, blocks.OREPA, (3,), SHAPES),
    "OREPA1x1": (layers.OREPABlock, blocks.OREPA1x1, (1,), ("same", "wider", "narrower")),
    "OREPALarge": (layers.OREPAStem, blocks.OREPALarge, (5, 7), ("wider", "same")),
    "OREPARepVGG": (layers.OREPARepVGGBlock, blocks.OREPARepVGG, (3,), ("same", "wider")),
    "ConvBN": (layers.ConvBNBlock, blocks.ConvBN, (1, 7), SHAPES),
}
CASES = [
    pytest.param(family, size, shape, id=f"{family}-{size}-{shape}")
    for family, (_, _, sizes, shapes) in FAMILIES.items()
    for size in sizes
    for shape in shapes
]


def one_block(ours, name, inputs, outputs, size, stride, groups):
    options = {"branches": 4} if ours is layers.MobileOneBlock else {}
    x = keras.Input((9, 10, inputs))
    block = ours(
        outputs,
        kernel_size=size,
        strides=stride,
        padding=size // 2,
        groups=groups,
        activation="relu",
        name=name,
        **options,
    )
    return keras.Model(x, block(x))


@pytest.mark.parametrize(("family", "size", "shape"), CASES)
def test_block_loads(family, size, shape, tmp_path):
    ours, theirs, _, _ = FAMILIES[family]
    inputs, outputs, stride, groups = SHAPES[shape]
    module = randomized(theirs(inputs, outputs, size, stride, groups))
    model = one_block(ours, "stage2_block3", inputs, outputs, size, stride, groups)
    x = images((2, 9, 10, inputs))
    assert_loads(model, module, x, tmp_path / "block.pth", "stage2.2.")


def test_dbb_of_one_channel_is_depthwise(tmp_path):
    module = randomized(blocks.DBB(1, 1))
    model = one_block(layers.DiverseBranchBlock, "stage1_block1", 1, 1, 3, 1, 1)
    assert_loads(model, module, images((2, 9, 10, 1)), tmp_path / "block.pth", "stage1.0.")


@pytest.mark.slow
def test_priors_of_all_frequencies(tmp_path):
    """64 channels have every filter there is, the zero ones and the repeated ones."""
    module = randomized(blocks.OREPA(4, 64))
    model = one_block(layers.OREPABlock, "stage1_block1", 4, 64, 3, 1, 1)
    assert_loads(model, module, images((1, 9, 10, 4)), tmp_path / "a.pth", "stage1.0.")
    module = randomized(blocks.OREPALarge(3, 64, 7))
    model = one_block(layers.OREPAStem, "stem", 3, 64, 7, 1, 1)
    assert_loads(model, module, images((1, 9, 10, 3)), tmp_path / "b.pth", "stage0.conv1.")


@pytest.mark.parametrize("identity", [False, True])
def test_ecb(identity, tmp_path):
    module = randomized(blocks.ECB(6, 6, act=False))
    module.identity = identity
    x = keras.Input((9, 10, 6))
    model = keras.Model(x, layers.ECB(6, identity=identity, padding=1, name="block3")(x))
    assert_loads(model, module, images((2, 9, 10, 6)), tmp_path / "ecb.pt", "backbone.3.")


def test_squeeze_and_excite_of_repvgg(tmp_path):
    module = blocks.RepVGG(16, 32)
    module.se = blocks.SqueezeExcite(32, ("down", "up"))
    x = keras.Input((9, 10, 16))
    y = layers.RepVGGBlock(32, padding=1, name="stage1_block1")(x)
    y = keras.layers.ReLU()(layers.SqueezeExcite(2, name="stage1_block1_se")(y))
    model, values = keras.Model(x, y), images((2, 9, 10, 16))
    assert_loads(model, randomized(module), values, tmp_path / "se.pth", "stage1.0.")
