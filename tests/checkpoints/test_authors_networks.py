"""The authors' networks, small, with their names."""

import keras
import pytest

from repq_tf import layers, models
from tests.checkpoints import torch_blocks as blocks
from tests.checkpoints import torch_networks as networks
from tests.checkpoints.reference import assert_loads, images, randomized

CLASSES, WIDTH = 5, 1 / 8
SIDE = 80  # above 64, so that every stage halves the image as on ImageNet


def load(name, module, path, **options):
    model = models.build(name, CLASSES, input_shape=(SIDE, SIDE, 3), width=WIDTH, **options)
    assert_loads(model, randomized(module), images((2, SIDE, SIDE, 3)), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("repvgg_a1", blocks.RepVGG),
        ("qarepvgg_a1", blocks.QARepVGG),
        ("orepa_repvgg_a1", blocks.OREPARepVGG),
    ],
)
def test_repvgg(name, block, tmp_path):
    stages = [[8], [8] * 2, [16] * 4, [32] * 14, [160]]
    module = networks.RepVGGNet(block, stages, CLASSES)
    load(name, module, tmp_path / "network.pth.tar")


@pytest.mark.slow
def test_mobileone_s0(tmp_path):
    stages = [[8], [8] * 2, [16] * 8, [32] * 10, [128]]
    module = networks.MobileOneNet(blocks.MobileOne, stages, (0, 0, 0, 0), CLASSES)
    load("mobileone_s0", module, tmp_path / "network.pth.tar")


@pytest.mark.slow
def test_mobileone_s4_has_squeeze_and_excite(tmp_path):
    stages = [[8], [24] * 2, [56] * 8, [112] * 10, [256]]
    module = networks.MobileOneNet(blocks.MobileOneOfOne, stages, (0, 0, 5, 1), CLASSES)
    load("mobileone_s4", module, tmp_path / "network.pth.tar")


RESNETS = {
    "ac_resnet18": {1: blocks.ConvBN, 3: blocks.ACB, 7: blocks.ConvBN},
    "dbb_resnet18": {1: blocks.ConvBN, 3: blocks.DBB, 7: blocks.ConvBN},
    "orepa_resnet18": {1: blocks.ConvBN, 3: blocks.OREPA, 7: blocks.OREPALarge},
    "orepa_resnet50": {1: blocks.OREPA1x1, 3: blocks.OREPA, 7: blocks.OREPALarge},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNETS)
def test_resnets(name, tmp_path):
    deep = name.endswith("50")
    depths = (3, 4, 6, 3) if deep else (2, 2, 2, 2)
    module = networks.ResNet(RESNETS[name], (8, 16, 32, 64), depths, CLASSES, deep)
    load(name, module, tmp_path / "network.pth.tar")


@pytest.mark.slow
def test_resnet18_of_acnet(tmp_path):
    """The deployed file keeps the batch norms of what was plain in training."""
    kinds = dict.fromkeys((1, 3, 7), networks.acnet_conv)
    module = networks.ResNet(kinds, (8, 16, 32, 64), (2, 2, 2, 2), CLASSES, staged=False)
    load("ac_resnet18", module, tmp_path / "latest.pth")


def test_names_of_acnets_bottlenecks(tmp_path):
    """Where its ResNet-50 has blocks and projections; here one after the other."""
    conv, sequential = networks.acnet_conv, blocks.sequential
    block = sequential(conv1=conv(8, 8, 1, 1), conv2=conv(8, 8, 3, 1))
    module = sequential(stage1=sequential(block0=block, projection=conv(8, 8, 1, 1)))
    x = y = keras.Input((9, 10, 8))
    parts = {
        "conv1": layers.ConvBNBlock,
        "conv2": layers.ACBlock,
        "shortcut": layers.ConvBNBlock,
    }
    for part, kind in parts.items():
        size = 3 if part == "conv2" else 1
        y = kind(8, size, activation="relu", name=f"stage1_block1_{part}")(y)
    model, values = keras.Model(x, y), images((2, 9, 10, 8))
    assert_loads(model, randomized(module), values, tmp_path / "finish.pth")


@pytest.mark.slow
@pytest.mark.parametrize("colors", [1, 3])
def test_ecbsr(colors, tmp_path):
    module = randomized(networks.ECBSR(4, 8, 2, colors))
    model = models.ecbsr_m4c8(scale=2, channels=colors)
    assert_loads(model, module, images((2, 12, 10, colors)), tmp_path / "network.pt")


def test_ecbsr_with_identities_where_channels_are_equal(tmp_path):
    """Of 16 channels and scale 4, the last block has as many inputs as outputs."""
    module = randomized(networks.ECBSR(1, 16, 4, 1, identity=True))
    model = models.ecbsr(1, 16, scale=4, identity=True)
    assert_loads(model, module, images((2, 12, 10, 1)), tmp_path / "network.pt")
