"""What `load_torch_checkpoint` checks before it changes anything."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import layers, models
from tests.checkpoints import torch_blocks as blocks
from tests.checkpoints.reference import deploy, randomized
from tests.checkpoints.torch_networks import ECBSR


def network(groups=1):
    x = keras.Input((9, 10, 8))
    y = layers.RepVGGBlock(
        8, padding=1, groups=groups, activation="relu", name="stage1_block1"
    )(x)
    y = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model(x, keras.layers.Dense(5, name="logits")(y))


def named(module, prefix):
    return {f"{prefix}{k}": v.detach().numpy() for k, v in module.state_dict().items()}


def state(seed=0):
    tensors = named(randomized(blocks.RepVGG(8, 8), seed), "stage1.0.")
    rng = np.random.default_rng(seed)
    tensors["linear.weight"] = rng.normal(size=(5, 8)).astype("float32")
    tensors["linear.bias"] = rng.normal(size=5).astype("float32")
    return tensors


def assert_refused(model, tensors, path, match):
    before = [np.array(weight) for weight in model.weights]
    np.savez(path, **tensors)
    with pytest.raises(ValueError, match=match):
        repq_tf.load_torch_checkpoint(model, path)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_every_weight_is_set(tmp_path):
    model, tensors = network(), state()
    for weight in model.weights:
        weight.assign(weight * np.nan)
    np.savez(tmp_path / "a.npz", **tensors)
    repq_tf.load_torch_checkpoint(model, tmp_path / "a.npz")
    assert all(np.isfinite(weight).all() for weight in model.weights)
    np.testing.assert_array_equal(model.get_layer("logits").kernel, tensors["linear.weight"].T)


def test_missing_tensors_are_named(tmp_path):
    tensors = state()
    del tensors["stage1.0.rbr_1x1.bn.running_var"], tensors["linear.bias"]
    match = (
        r"2 weights .*pointwise_bn/moving_variance .stage1\.0\.rbr_1x1\.bn\.running_var.*linear"
    )
    assert_refused(network(), tensors, tmp_path / "a.npz", match)


def test_other_tensors_are_named(tmp_path):
    tensors = {**state(), "stage1.1.rbr_dense.conv.weight": np.ones((8, 8, 3, 3))}
    match = r"1 tensors .*stage1\.1\.rbr_dense\.conv\.weight"
    assert_refused(network(), tensors, tmp_path / "a.npz", match)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stage1.0.rbr_dense.conv.weight", (8, 8, 5, 5)),
        ("stage1.0.rbr_dense.conv.weight", (8, 4, 3, 3)),
        ("stage1.0.rbr_dense.bn.weight", (16,)),
        ("linear.weight", (10, 8)),
        ("linear.weight", (8, 5)),
    ],
)
def test_shapes_are_checked(name, shape, tmp_path):
    tensors = {**state(), name: np.ones(shape, "float32")}
    match = rf"shapes must agree.*{name}"
    assert_refused(network(), tensors, tmp_path / "a.npz", match)


def test_merged_checkpoints_belong_into_merged_models(tmp_path):
    module = randomized(blocks.RepVGG(8, 8))
    deploy(module)
    tensors = named(module, "stage1.0.")
    tensors |= {k: v for k, v in state().items() if k.startswith("linear")}
    assert_refused(network(), tensors, tmp_path / "a.npz", r"rbr_reparam.*repq_tf\.merge")
    repq_tf.load_torch_checkpoint(repq_tf.merge(network()), tmp_path / "a.npz")


def test_restored_batch_norms_are_no_part_of_a_checkpoint(tmp_path):
    x = keras.Input((9, 10, 8))
    y = layers.RepVGGBlock(8, padding=1, merged=True, name="stage1_block1")(x)
    tensors = {k: v for k, v in state().items() if k.startswith("stage")}
    assert_refused(keras.Model(x, y), tensors, tmp_path / "a.npz", "restored_bn")


def test_skipped_layers_keep_their_weights(tmp_path):
    tensors = {**state(), "linear.weight": np.ones((7, 8)), "linear.bias": np.ones(7)}
    np.savez(tmp_path / "a.npz", **tensors)
    model = network()
    before = np.array(model.get_layer("logits").kernel)
    repq_tf.load_torch_checkpoint(model, tmp_path / "a.npz", skip=["log*"])
    np.testing.assert_array_equal(model.get_layer("logits").kernel, before)
    kernel = model.get_layer("stage1_block1").expression.children[0].child.kernel
    wanted = tensors["stage1.0.rbr_dense.conv.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, wanted)
    with pytest.raises(ValueError, match="'head' matches no layer.*logits"):
        repq_tf.load_torch_checkpoint(model, tmp_path / "a.npz", skip="head")


def test_flat_tensors_are_in_torch_order(tmp_path):
    tensors = state()
    flat = {name: tensor.ravel() for name, tensor in tensors.items()}
    np.savez(tmp_path / "flat.npz", **flat)
    np.savez(tmp_path / "shaped.npz", **tensors)
    first, second = network(), network()
    repq_tf.load_torch_checkpoint(first, tmp_path / "flat.npz")
    repq_tf.load_torch_checkpoint(second, tmp_path / "shaped.npz")
    for one, other in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_fixed_filters_are_refused(tmp_path):
    module = randomized(blocks.ECB(4, 4, act=False))
    tensors = named(module, "backbone.1.")
    tensors["backbone.1.conv1x1_sbx.mask"] = -tensors["backbone.1.conv1x1_sbx.mask"]
    x = keras.Input((9, 10, 4))
    model = keras.Model(x, layers.ECB(4, padding=1, name="block1")(x))
    assert_refused(model, tensors, tmp_path / "a.npz", "conv1x1_sbx.mask: .*fixed filters")


def test_priors_must_be_multiples_of_ours(tmp_path):
    module = randomized(blocks.OREPA(4, 8))
    tensors = named(module, "stage1.0.")
    x = keras.Input((9, 10, 4))
    model = keras.Model(
        x, layers.OREPABlock(8, padding=1, activation="relu", name="stage1_block1")(x)
    )
    tensors["stage1.0.weight_orepa_prior"] = np.ones((8, 3, 3))
    assert_refused(model, tensors, tmp_path / "a.npz", "weight_orepa_prior: .*multiples")


def test_the_last_channels_before_a_pixel_shuffle(tmp_path):
    """Only ECBSR's layers are known there."""
    x = keras.Input((9, 10, 8))
    y = layers.RepVGGBlock(12, padding=1, activation="relu", name="stage1_block1")(x)
    model = keras.Model(x, layers.DepthToSpace(2)(y))
    module = randomized(blocks.RepVGG(8, 12))
    tensors = named(module, "stage1.0.")
    assert_refused(model, tensors, tmp_path / "a.npz", "cannot be loaded before DepthToSpace")


def test_identities_before_a_pixel_shuffle_of_colors(tmp_path):
    """The x that is added cannot be put in the order that other outputs are put in."""
    model = models.ecbsr(1, 12, scale=2, channels=3, identity=True)
    tensors = named(randomized(ECBSR(1, 12, 2, 3, identity=True)), "")
    match = "'last': ECB with identity=True cannot be loaded before DepthToSpace to 3 channels"
    assert_refused(model, tensors, tmp_path / "a.npz", match)


@pytest.mark.parametrize(
    ("changes", "use_bias", "match"),
    [
        ({"bn.bias": None}, True, r"1 weights .*stem/bias .*conv1\.bn\.bias"),
        ({"conv.bias": np.ones(4)}, True, r"1 tensors .*conv1\.conv\.bias"),
        ({"bn.running_var": np.ones(1)}, True, r"shapes .*conv1\.bn\.running_var \(1,"),
        ({"conv.weight": np.ones((4, 3, 5, 5))}, True, r"shapes .*conv1\.conv\.weight"),
        ({}, False, r"4 tensors .*conv1\.bn\.weight"),
    ],
)
def test_kept_batch_norms_must_fit(changes, use_bias, match, tmp_path):
    """Deployed files of ACNet have them behind what was plain in training."""
    tensors = named(randomized(blocks.conv_bn(3, 4, 3)), "conv1.")
    tensors |= {f"conv1.{name}": value for name, value in changes.items()}
    tensors = {name: value for name, value in tensors.items() if value is not None}
    x = keras.Input((9, 10, 3))
    model = keras.Model(x, keras.layers.Conv2D(4, 3, use_bias=use_bias, name="stem")(x))
    assert_refused(model, tensors, tmp_path / "a.npz", match)
