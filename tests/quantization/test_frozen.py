"""Frozen layers and parts of layers keep weights, moments and steps, wherever they go."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm
from repq_tf.layers import ACBlock, ConvBNBlock, ReparamConv, RepVGGBlock, SqueezeExcite
from tests.quantization.networks import array, block_of, images, network, quantize, train

layers = keras.layers
X = images(16)
SHAPE = X.shape[1:]


def blocks(x):
    x = RepVGGBlock(4, name="vgg")(x)
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="conv_bn")(x)
    x = SqueezeExcite(2, name="se")(layers.ReLU(name="relu")(x))
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


def moved(model, variables=None, **options):
    """The paths of the variables that training moves."""
    variables = model.variables if variables is None else variables
    before = [array(v) for v in variables]
    train(model, X, outputs=model.output_shape[-1], rate=0.1, **options)
    pairs = zip(variables, before, strict=True)
    return {v.path for v, old in pairs if not np.array_equal(array(v), old)}


def nodes(block):
    return {node.name: node for node in block.expression.walk()}


def freeze_branch(block):
    """Freezes a branch, and of another one the batch norm alone."""
    found = nodes(block)
    found["pointwise_bn"].trainable = False
    found["square_bn"].trainable = False
    found["square"].trainable = True


@pytest.mark.slow
@pytest.mark.parametrize("how", ["float", "merged", "quantized"])
def test_frozen_branches_and_batch_norms_stay_in_training(how, tmp_path):
    inputs = keras.Input(SHAPE)
    y = RepVGGBlock(4, name="b", merged=how == "merged", bn_statistics="batch")(inputs)
    model = keras.Model(inputs, layers.Flatten()(y))
    freeze_branch(model.get_layer("b"))
    if how == "quantized":
        model = quantize(model, bn_statistics="batch")
    model.save(tmp_path / "model.keras")
    for one in (model, keras.models.load_model(tmp_path / "model.keras", compile=False)):
        steps = {"b/weight_quantizer/step_change"} if how == "quantized" else set()
        found = {path for path in moved(one) if path.startswith("b/")}
        assert found == {"b/sum/square_bn/square/kernel", *steps}


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["conv", "conv_bn"])
def test_a_convolution_and_its_batch_norm_are_frozen_each_alone(alone):
    model = network(blocks)
    model.get_layer(alone).trainable = False
    qat = quantize(model)
    block = qat.get_layer("conv")
    root, statistics = block.root, block.root.statistics
    of_norm = {v.path for v in (root.gamma, root.beta, *statistics.variables)}
    of_kernel = {block.inner.kernel.path, block.weight_quantizer.change.path}
    found = moved(qat, block.variables)
    assert found == (of_norm if alone == "conv" else of_kernel)
    row = next(row for row in repq_tf.quantization_table(qat).rows if row.name == "conv")
    assert row.frozen == ("conv, weight_quantizer" if alone == "conv" else "bn")


@pytest.mark.slow
def test_a_wholly_frozen_layer_is_so_to_its_steps():
    model = network(blocks)
    for name in ("vgg", "conv", "conv_bn"):
        model.get_layer(name).trainable = False
    qat = quantize(model)
    found = moved(qat)
    assert not [path for path in found if path.startswith(("vgg/", "conv/"))], found
    table = repq_tf.quantization_table(qat)
    assert [row.name for row in table.rows if row.frozen == "all"] == ["vgg", "conv"]
    assert "frozen" in str(table)
    assert "frozen" not in str(repq_tf.quantization_table(quantize(network(blocks))))


def test_the_restored_batch_norm_stands_for_those_inside():
    """It is frozen where all of them are: their moments must not come back through it."""

    def restored(freeze):
        model = network(lambda x: ACBlock(4, name="ac")(x))
        norms = [n for n in nodes(model.get_layer("ac")).values() if isinstance(n, BatchNorm)]
        for norm in norms[:freeze]:
            norm.trainable = False
            norm.child.trainable = True
        assert len(norms) == 3
        block = block_of(quantize(model), "ac")
        return block.restored.trainable, block.weight_quantizer.trainable

    assert restored(freeze=2) == (True, True)
    assert restored(freeze=3) == (False, True)


@pytest.mark.slow
def test_the_halves_of_squeeze_and_excite_are_frozen_each_alone():
    model = network(blocks)
    model.get_layer("se").reduce.trainable = False
    found = moved(quantize(model))
    assert not [path for path in found if path.startswith("se_reduce/")]
    assert [path for path in found if path.startswith("se_expand/")]


@pytest.mark.parametrize("copy", ["reparameterize", "with_container", "save"])
def test_copies_are_frozen_alike(copy, tmp_path):
    def function(x):
        x = layers.Conv2D(4, 3, name="other")(blocks_of(x))
        return layers.GlobalAveragePooling2D(name="mean")(x)

    def blocks_of(x):
        return SqueezeExcite(2, name="se")(RepVGGBlock(4, name="vgg")(x))

    model = network(function)
    freeze_branch(model.get_layer("vgg"))
    model.get_layer("se").expand.trainable = False
    if copy == "with_container":
        model = quantize(model, bits=4)
        result = repq_tf.with_container(model, "int4")
    elif copy == "reparameterize":
        result = repq_tf.reparameterize(model, "acnet", verbose=False)
    else:
        model.save(tmp_path / "model.keras")
        result = keras.models.load_model(tmp_path / "model.keras", compile=False)
    paths = [[v.path for v in m.trainable_variables] for m in (model, result)]
    one, other = ([p for p in found if "vgg" in p or "se" in p] for found in paths)
    assert one == other
    assert "vgg/sum/square_bn/square/kernel" in one
    frozen = ("pointwise/", "square_bn/gamma", "se/expand/", "se_expand/")
    assert not any(part in path for path in one for part in frozen), one


def test_a_block_of_frozen_parts_merges_into_a_frozen_convolution():
    model = network(lambda x: ConvBNBlock(3, name="two")(RepVGGBlock(4, name="one")(x)))
    model.get_layer("one").expression.trainable = False
    model.get_layer("two").expression.child.trainable = False
    merged = repq_tf.merge(model)
    assert {v.path for v in merged.trainable_variables} == {"two/kernel", "two/bias"}


@keras.saving.register_keras_serializable(package="tests")
class HalfFrozen(ReparamConv):
    """A block that freezes a branch where it makes it."""

    def make_branches(self, in_channels):
        frozen = self.convolution(name="frozen")
        frozen.trainable = False
        return repq_tf.branches.Sum([frozen, self.convolution(name="free")])


def test_a_branch_is_frozen_where_it_is_made():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layers.Flatten()(HalfFrozen(4, name="b")(inputs)))
    assert moved(model) == {"b/sum/free/kernel"}
