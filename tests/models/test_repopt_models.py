"""RepOpt-VGG: published sizes, the search network, and both stages."""

import math

import keras
import numpy as np
import pytest

from repq_tf import models
from repq_tf.layers import ConvBNBlock, CSLABlock
from repq_tf.optimizers import repopt
from repq_tf.reparameterization import merge
from tests.models.outline import blocks, outline

# Millions of parameters in the table of the authors' repository, and numbers of blocks.
PUBLISHED = {"b1": (51.8, 28), "b2": (80.3, 28), "l1": (76.0, 48), "l2": (118.1, 48)}


def deployed(model):
    """Kernels and biases, and the classifier."""
    kernels = sum(9 * b.input.shape[-1] * b.filters + b.filters for b in blocks(model))
    return kernels + 1000 * (blocks(model)[-1].filters + 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_parameters(size):
    parameters, number = PUBLISHED[size]
    target, search = outline(f"repopt_vgg_{size}"), outline(f"repopt_vgg_{size}_search")
    assert len(blocks(target)) == len(blocks(search)) == number
    assert {type(block) for block in blocks(target)} == {ConvBNBlock}
    assert {type(block) for block in blocks(search)} == {CSLABlock}
    for model in (target, search):
        assert deployed(model) / 1e6 == pytest.approx(parameters, abs=0.051)
    weights = sum(math.prod(variable.shape) for variable in target.trainable_variables)
    assert weights == deployed(target) + sum(block.filters for block in blocks(target))
    assert models.plain_twin(search.name) == models.plain_twin(target.name) == target.name


def test_b1_is_repvgg_b1s_plain_network():
    shapes = [
        [(v.path, v.shape) for v in outline(name).variables]
        for name in ("repopt_vgg_b1", "repvgg_b1_plain")
    ]
    assert shapes[0] == shapes[1]


def test_scales_of_the_search_start_as_the_authors():
    search = outline("repopt_vgg_b1_search")
    first = [1.0, math.sqrt(2), 1.0, math.sqrt(2 / 3)]
    stages = {stage: [] for stage in ("stem", "stage1", "stage2", "stage3", "stage4")}
    for block in blocks(search):
        stages[block.name.partition("_")[0]].append(block)
        assert block.identity_scale == 1.0 and block.trainable_scales
    assert [block.scales for block in stages["stage1"]] == pytest.approx(first)
    assert stages["stage3"][15].scales == pytest.approx(math.sqrt(2 / 15))
    assert [block.scales for block in (*stages["stem"], *stages["stage4"])] == [1.0, 1.0]
    identities = [len(block.inner.children) == 3 for block in stages["stage1"]]
    assert identities == [False, True, True, True]


def test_scales_may_be_the_users():
    search = outline("repopt_vgg_b1_search", width=0.1, scales=0.25, identity_scale=0.5)
    assert {(block.scales, block.identity_scale) for block in blocks(search)} == {(0.25, 0.5)}


@pytest.mark.slow(20)
def test_both_stages():
    """The search's scales move; the target starts from them and learns; it merges."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 8, 8, 1)).astype("float32"), rng.integers(0, 3, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    search = models.repopt_vgg_b1_search(classes=5, input_shape=(8, 8, 1), width=0.06)
    search.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    search.fit(x, y, batch_size=16, verbose=0)
    gain = search.get_layer("stage1_block2").inner.children[0].gain
    assert np.ptp(keras.ops.convert_to_numpy(gain)) > 0

    target = models.repopt_vgg_b1(classes=3, input_shape=(8, 8, 1), width=0.06)
    sgd = keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=4e-5)
    optimizer = repopt(sgd, search, target)
    assert len(optimizer.multipliers) == 28
    kernel = keras.ops.convert_to_numpy(target.get_layer("stage1_block2").inner.kernel)
    u = keras.ops.convert_to_numpy(search.get_layer("stage1_block2").inner.children[2].gain)
    assert np.diag(kernel[1, 1]).mean() == pytest.approx(u.mean(), abs=0.5)
    target.compile(optimizer, loss, jit_compile=False)
    losses = target.fit(x, y, batch_size=16, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    logits = keras.ops.convert_to_numpy(target(x))
    np.testing.assert_allclose(merge(target)(x), logits, rtol=0, atol=1e-4 * np.ptp(logits))
