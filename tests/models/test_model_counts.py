"""Numbers of parameters against the published ones."""

import math
import re

import pytest

from repq_tf import models
from repq_tf.reparameterization import merge
from tests.models.outline import blocks, outline

MILLION = 1e6

# Millions of parameters, deployed and in training, as in mmpretrain's table of the authors'
# checkpoints (configs/repvgg). It lacks B2g2 and B3g2, whose deployed numbers are those that
# a Keras port prints.
REPVGG = {
    "repvgg_a0": (8.31, 9.11),
    "repvgg_a1": (12.79, 14.09),
    "repvgg_a2": (25.50, 28.21),
    "repvgg_b0": (14.34, 15.82),
    "repvgg_b1": (51.83, 57.42),
    "repvgg_b1g2": (41.36, 45.78),
    "repvgg_b1g4": (36.13, 39.97),
    "repvgg_b2": (80.32, 89.02),
    "repvgg_b2g2": (63.96, None),
    "repvgg_b2g4": (55.78, 61.76),
    "repvgg_b3": (110.96, 123.09),
    "repvgg_b3g2": (87.40, None),
    "repvgg_b3g4": (75.63, 83.83),
    "repvgg_d2se": (120.39, 133.33),
}
# The deployed networks of mmpretrain (configs/mobileone/metafile.yml), to the last parameter,
# and timm's millions in training.
MOBILEONE = {
    "mobileone_s0": (2_078_504, 5.29),
    "mobileone_s1": (4_764_840, 4.83),
    "mobileone_s2": (7_808_168, 7.88),
    "mobileone_s3": (10_078_312, 10.17),
    "mobileone_s4": (14_838_352, 14.95),
}
# torchvision's parameters, of which so many are gammas: deployed networks have none.
RESNET = {
    18: (11_689_512, 4_800),
    34: (21_797_672, 8_512),
    50: (25_557_032, 26_560),
}


def size(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def in_training(model):
    return size(model.trainable_variables)


def deployed(model):
    """Merged kernels and biases, and the weights of ordinary layers."""
    others = [layer for layer in model.layers if not hasattr(layer, "merge")]
    total = sum(size(layer.trainable_variables) for layer in others)
    for block in blocks(model):
        inputs = block.input.shape[-1] // block.groups
        total += (math.prod(block.kernel_size) * inputs + 1) * block.filters
    return total


def repvgg_counts(name):
    """Channels, taps of the 1x1 branches and numbers of batch norms, layer by layer."""
    size = name.rpartition("_")[2]
    depths = {"a": (2, 4, 14, 1), "b": (4, 6, 16, 1), "d": (8, 14, 24, 1)}[size[0]]
    a, b = {
        **{"a0": (0.75, 2.5), "a1": (1, 2.5), "a2": (1.5, 2.75)},
        **{"b0": (1, 2.5), "b1": (2, 4), "b2": (2.5, 5), "b3": (3, 5), "d2": (2.5, 5)},
    }[size[:2]]
    groups = int(size[3:]) if size[2:3] == "g" else 1
    widths = [min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b]
    channels = [3] + [w for w, d in zip(widths, (1, *depths), strict=True) for _ in range(d)]
    taps = identities = 0
    for layer, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
        taps += inputs * outputs / (groups if layer % 2 == 0 and 2 <= layer <= 26 else 1)
        first = layer in (0, *(1 + sum(depths[:stage]) for stage in range(4)))
        identities += 0 if first else outputs
    excite = sum(2 * c * (c // 16) + c + c // 16 for c in channels[1:]) if "se" in size else 0
    return taps, sum(channels[1:]), identities, 1000 * (channels[-1] + 1) + excite


@pytest.mark.slow
@pytest.mark.parametrize("name", REPVGG)
def test_repvgg(name):
    taps, outputs, identities, other = repvgg_counts(name)
    model = outline(name)
    assert deployed(model) == 9 * taps + outputs + other
    assert in_training(model) == 10 * taps + 2 * (2 * outputs + identities) + other
    for counted, published in zip((deployed, in_training), REPVGG[name], strict=True):
        if published:
            assert counted(model) / MILLION == pytest.approx(published, abs=0.0051)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1", "repvgg_b2g4"])
def test_qarepvgg(name):
    taps, outputs, _, logits = repvgg_counts(name)
    model = outline(f"qa{name}")
    assert deployed(model) == deployed(outline(name))
    assert in_training(model) == 10 * taps + 2 * 2 * outputs + logits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_a2"])
def test_orepa_repvgg_deploys_as_repvgg(name):
    assert deployed(outline(f"orepa_{name}")) == deployed(outline(name))
    assert in_training(outline(f"orepa_{name}")) > in_training(outline(name))


@pytest.mark.slow
def test_deployed_is_what_merging_leaves():
    model = models.repvgg_a0(classes=3, input_shape=(8, 8, 3), width=0.125)
    assert merge(model).count_params() == deployed(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_d2se", "mobileone_s0", "mobileone_s4"])
def test_plain_twins_have_one_kernel_and_one_batch_norm_a_block(name):
    model = outline(f"{name}_plain")
    assert deployed(model) == deployed(outline(name))
    biases = sum(block.filters for block in blocks(model))
    assert in_training(model) == deployed(model) + biases


@pytest.mark.parametrize("name", MOBILEONE)
def test_mobileone(name):
    assert deployed(outline(name)) == MOBILEONE[name][0]
    assert in_training(outline(name)) / MILLION == pytest.approx(MOBILEONE[name][1], abs=0.0051)


@pytest.mark.parametrize("depth", RESNET)
def test_resnet(depth):
    parameters, gammas = RESNET[depth]
    assert in_training(outline(f"resnet{depth}")) == parameters
    assert deployed(outline(f"resnet{depth}")) == parameters - gammas


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "depth"),
    [
        *(("ac", depth) for depth in RESNET),
        ("dbb", 18),
        ("dbb", 50),
        ("orepa", 18),
        ("orepa", 50),
    ],
)
def test_every_resnet_deploys_as_the_plain_one(family, depth):
    model, plain = outline(f"{family}_resnet{depth}"), outline(f"resnet{depth}")
    assert deployed(model) == deployed(plain)
    squares = sum(
        9 * b.filters * b.input.shape[-1] for b in blocks(plain) if b.kernel_size[0] == 3
    )
    # More by the smallest of the blocks' branches: ACNet's six taps beside nine.
    assert in_training(model) > in_training(plain) + 6 / 9 * squares


def check_super_resolution(name, scale, channels):
    """ECBSR has m + 1 PReLUs with a slope for each channel, RepVGG-SR none."""
    family, m, c = re.fullmatch(r"(\w+)_m(\d+)c(\d+)(?:_plain)?", name).groups()
    m, c = int(m), int(c)
    outputs = channels * scale**2
    convolutions = (9 * channels + 1) * c + m * (9 * c + 1) * c + (9 * c + 1) * outputs
    model = outline(name, scale=scale, channels=channels)
    slopes = {"ecbsr": (m + 1) * c, "repvgg_sr": 0}[family]
    assert deployed(model) == convolutions + slopes
    return convolutions


# Every depth and every width; building all of them takes half a minute.
SUPER_RESOLUTION = [
    f"ecbsr_m{size}" for size in ("4c8", "10c16", "10c32", "16c64", "16c64_plain")
]
SUPER_RESOLUTION += [f"repvgg_sr_m{size}" for size in ("4c16", "10c32", "10c32_plain")]


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
def test_super_resolution(name):
    check_super_resolution(name, scale=2, channels=1)


@pytest.mark.parametrize(("scale", "channels"), [(2, 3), (3, 1), (4, 3)])
@pytest.mark.parametrize("name", ["ecbsr_m4c8", "repvgg_sr_m4c16"])
def test_super_resolution_of_other_scales(name, scale, channels):
    check_super_resolution(name, scale, channels)


def test_ecbsr_has_the_numbers_of_public_networks():
    assert check_super_resolution("ecbsr_m4c8", scale=2, channels=1) == 2708  # the authors'
    assert check_super_resolution("ecbsr_m4c16", scale=2, channels=3) == 11_468  # a public one
