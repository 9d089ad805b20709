"""What the base class promises to whoever writes a new block."""

import keras
import numpy as np
import pytest

from repq_tf.branches import Chain, Identity, Sum
from repq_tf.layers import ConvBlock, ReparamConv, RepVGGBlock
from tests.block_case import BlockCase, array


@keras.saving.register_keras_serializable("tests")
class DeepBlock(ReparamConv):
    """1x1 -> 3x3 with biases and batch norms inside, beside a strip and the input."""

    def make_branches(self, in_channels):
        expand = self.convolution(1, name="expand", filters=5, use_bias=True)
        project = self.convolution((3, 3), name="project", use_bias=True)
        strip = self.convolution((1, 3), name="strip", use_bias=True)
        branches = [
            Chain([self.batch_norm(expand), self.batch_norm(project)], name="deep"),
            self.batch_norm(strip),
        ]
        if in_channels == self.filters and self.strides == (1, 1):
            branches.append(Identity())
        return self.batch_norm(Sum(branches), name="bn")


class TestDeepBlock(BlockCase):
    """A user's block: a chain with biases, a batch norm inside it and one at the root."""

    block = DeepBlock
    options = {"filters": 4}
    modes = ("restored", "sample")
    variants = {
        "as it is": {},
        "stride 2": {"strides": 2},
        "valid": {"padding": "valid"},
        "padding ((2, 0), (0, 1)), stride 2": {"padding": ((2, 0), (0, 1)), "strides": 2},
    }
    weights = """
        bn/gamma (4,)
        bn/beta (4,)
        bn/sum/deep/expand_bn/gamma (5,)
        bn/sum/deep/expand_bn/beta (5,)
        bn/sum/deep/expand_bn/expand/kernel (1, 1, 4, 5)
        bn/sum/deep/expand_bn/expand/bias (5,)
        bn/sum/deep/expand_bn/statistics/moving_mean (5,)
        bn/sum/deep/expand_bn/statistics/moving_variance (5,)
        bn/sum/deep/project_bn/gamma (4,)
        bn/sum/deep/project_bn/beta (4,)
        bn/sum/deep/project_bn/project/kernel (3, 3, 5, 4)
        bn/sum/deep/project_bn/project/bias (4,)
        bn/sum/deep/project_bn/statistics/moving_mean (4,)
        bn/sum/deep/project_bn/statistics/moving_variance (4,)
        bn/sum/strip_bn/gamma (4,)
        bn/sum/strip_bn/beta (4,)
        bn/sum/strip_bn/strip/kernel (1, 3, 4, 4)
        bn/sum/strip_bn/strip/bias (4,)
        bn/sum/strip_bn/statistics/moving_mean (4,)
        bn/sum/strip_bn/statistics/moving_variance (4,)
        bn/statistics/moving_mean (4,)
        bn/statistics/moving_variance (4,)
    """


def test_branches_of_one_shape_start_apart():
    """Equal branches would get equal gradients and stay one branch for ever."""

    class Twins(ReparamConv):
        def make_branches(self, in_channels):
            return Sum([self.convolution(name="left"), self.convolution(name="right")])

    for initializer in ("he_normal", keras.initializers.HeNormal(seed=3)):
        block = Twins(4, kernel_initializer=initializer)
        block.build((None, 6, 6, 3))
        left, right = (array(child.kernel) for child in block.expression.children)
        assert not np.array_equal(left, right), initializer


def test_what_the_branches_make_is_checked_against_the_arguments():
    class Wrong(ReparamConv):
        def make_branches(self, in_channels):
            return self.convolution(**self.wrong)

    for wrong, message in (
        ({"kernel_size": (5, 5)}, r"kernel of size \(5, 5\), but kernel_size is \(3, 3\)"),
        ({"filters": 7}, "make 7 channels, but filters is 4"),
    ):
        block = Wrong(4, name="wrong")
        block.wrong = wrong
        with pytest.raises(ValueError, match=f"wrong: .*{message}"):
            block.build((None, 6, 6, 3))
    with pytest.raises(NotImplementedError, match="ReparamConv must implement make_branches"):
        ReparamConv(4).build((None, 6, 6, 3))


def test_an_unknown_image_size():
    """Any size at stride 1 or with explicit padding; "same" with strides says what to do."""
    inputs = keras.Input((None, None, 3))
    for options in ({}, {"strides": 2, "padding": 1}):
        model = keras.Model(inputs, ConvBlock(4, **options)(inputs))
        x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
        fixed = ConvBlock(4, **options)
        fixed.build((None, 9, 8, 3))
        fixed.set_weights(model.layers[-1].get_weights())
        np.testing.assert_allclose(array(model(x)), array(fixed(x)), rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match='padding="same" with strides above 1.*known input size'
    ):
        ConvBlock(4, strides=2)(inputs)


@pytest.mark.parametrize(("first", "then"), [("restored", "running"), ("batch", "restored")])
def test_a_mode_that_was_changed_is_saved_with_the_restored_batch_norm(first, then, tmp_path):
    image = keras.Input((6, 6, 2))
    block = RepVGGBlock(3, weight_bits=8, bn_statistics=first, name="b")
    model = keras.Model(image, block(image))
    block.bn_statistics = then
    model.save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    twin = loaded.get_layer("b")
    assert twin.bn_statistics == then
    assert (twin.restored is None) == (block.restored is None) == (first == "batch")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    np.testing.assert_array_equal(array(loaded(x)), array(model(x)))
