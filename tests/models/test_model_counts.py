"""Numbers of parameters against the published ones."""

import math

import pytest

from repq_tf import models
from repq_tf.deployment import merge

MILLION = 1e6

# Millions of parameters, deployed and in training, as in mmpretrain's table of the authors'
# checkpoints (configs/repvgg); OpenVINO's model zoo has B3 as 110.9609. B2g2 and B3g2 have
# no published numbers.
REPVGG = {
    "repvgg_a0": (8.31, 9.11),
    "repvgg_a1": (12.79, 14.09),
    "repvgg_a2": (25.50, 28.21),
    "repvgg_b0": (14.34, 15.82),
    "repvgg_b1": (51.83, 57.42),
    "repvgg_b1g2": (41.36, 45.78),
    "repvgg_b1g4": (36.13, 39.97),
    "repvgg_b2": (80.32, 89.02),
    "repvgg_b2g2": None,
    "repvgg_b2g4": (55.78, 61.76),
    "repvgg_b3": (110.96, 123.09),
    "repvgg_b3g2": None,
    "repvgg_b3g4": (75.63, 83.83),
}


def build(name):
    return models.build(name, kernel_initializer="zeros")


def in_training(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def deployed(model):
    """Merged kernels and biases, and the classifier."""
    total = model.get_layer("logits").count_params()
    for block in model.layers:
        if hasattr(block, "merge"):
            inputs = block.input.shape[-1] // block.groups
            total += (math.prod(block.kernel_size) * inputs + 1) * block.filters
    return total


def repvgg_formula(depths, a, b, groups):
    """Deployed and training parameters, counted layer by layer."""
    widths = [min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b]
    channels = [3] + [w for w, d in zip(widths, (1, *depths), strict=True) for _ in range(d)]
    kernels = taps = norms = 0
    for layer, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
        pairs = inputs * outputs / (groups if layer % 2 == 0 and 2 <= layer <= 26 else 1)
        kernels += 9 * pairs
        taps += pairs
        first = layer in (0, 1, *(1 + sum(depths[:stage]) for stage in (1, 2, 3)))
        norms += outputs * (2 if first else 3)
    logits = 1000 * (channels[-1] + 1)
    return kernels + sum(channels[1:]) + logits, kernels + taps + 2 * norms + logits


@pytest.mark.parametrize("name", REPVGG)
def test_repvgg(name):
    model = build(name)
    size = name.removeprefix("repvgg_")
    depths = (2, 4, 14, 1) if size[0] == "a" else (4, 6, 16, 1)
    a, b = {
        **{"a0": (0.75, 2.5), "a1": (1, 2.5), "a2": (1.5, 2.75)},
        **{"b0": (1, 2.5), "b1": (2, 4), "b2": (2.5, 5), "b3": (3, 5)},
    }[size[:2]]
    groups = int(size[3:] or 1)
    assert (deployed(model), in_training(model)) == repvgg_formula(depths, a, b, groups)
    if REPVGG[name]:
        published = REPVGG[name]
        assert deployed(model) / MILLION == pytest.approx(published[0], abs=0.0051)
        assert in_training(model) / MILLION == pytest.approx(published[1], abs=0.0051)


def test_merged_repvgg_a0_to_the_last_parameter():
    assert merge(build("repvgg_a0")).count_params() == 8_309_384


def test_plain_twins_have_one_kernel_and_one_batch_norm_a_block():
    model = build("repvgg_a0_plain")
    assert deployed(model) == 8_309_384
    biases = sum(block.filters for block in model.layers if hasattr(block, "merge"))
    assert in_training(model) == 8_309_384 + biases


def test_resnet18():
    model = build("resnet18")
    assert in_training(model) == 11_689_512  # torchvision's
    assert deployed(model) == 11_689_512 - 4800  # a bias instead of gamma and beta


def test_ac_resnet18_deploys_as_resnet18():
    model = build("ac_resnet18")
    assert deployed(model) == 11_689_512 - 4800
    square = 16 * 2 * 9 * 64 * 64  # just to be sure that there are branches to merge
    assert in_training(model) > deployed(model) + square
