import keras
import numpy as np
import pytest
import tensorflow as tf

from repq_tf.layers import RepVGGBlock
from tests.block_case import VARIANTS, BlockCase, array


class TestRepVGGBlock(BlockCase):
    block = RepVGGBlock
    options = {"filters": 4}
    variants = {
        **VARIANTS,
        "wider, hence no identity": {"filters": 8},
        "groups": {"groups": 2},
        "depthwise": {"groups": 4},
        "depthwise, stride 2": {"groups": 4, "strides": 2},
        "no batch norm": {"use_batch_norm": False},
        "no batch norm, stride 2": {"use_batch_norm": False, "strides": 2, "groups": 2},
    }
    weights = """
        sum/square_bn/gamma (4,)
        sum/square_bn/beta (4,)
        sum/square_bn/square/kernel (3, 3, 4, 4)
        sum/square_bn/statistics/moving_mean (4,)
        sum/square_bn/statistics/moving_variance (4,)
        sum/pointwise_bn/gamma (4,)
        sum/pointwise_bn/beta (4,)
        sum/pointwise_bn/pointwise/kernel (1, 1, 4, 4)
        sum/pointwise_bn/statistics/moving_mean (4,)
        sum/pointwise_bn/statistics/moving_variance (4,)
        sum/identity_bn/gamma (4,)
        sum/identity_bn/beta (4,)
        sum/identity_bn/statistics/moving_mean (4,)
        sum/identity_bn/statistics/moving_variance (4,)
    """

    @pytest.mark.parametrize(
        ("options", "branches"),
        [({}, 3), ({"strides": 2}, 2), ({"filters": 8}, 2), ({"groups": 2}, 3)],
    )
    def test_the_identity_is_there_when_shapes_allow(self, options, branches):
        assert len(self.make(**options).expression.children) == branches

    @pytest.mark.parametrize("denominator", [True, False])
    def test_the_custom_l2_of_the_authors(self, denominator, float64):
        block = self.make(custom_l2=0.3, custom_l2_denominator=denominator)
        x = self.features(4)
        block(x)
        assert block.losses == []  # in training alone
        square, pointwise = block.expression.children[:2]
        kernel, point = array(square.child.kernel), array(pointwise.child.kernel)[0, 0]
        gains = [
            array(node.gamma) / np.sqrt(array(node.statistics.moving_variance) + 1e-5)
            for node in (square, pointwise)
        ]
        around = (kernel**2).sum() - (kernel[1, 1] ** 2).sum()
        merged = (kernel[1, 1] * gains[0] + point * gains[1]) ** 2
        if denominator:
            merged = merged / (gains[0] ** 2 + gains[1] ** 2)
        with tf.GradientTape() as tape:
            tape.watch(square.gamma.value)
            loss = block._kernel_energy()
        np.testing.assert_allclose(array(loss), around + merged.sum(), rtol=1e-10)
        assert tape.gradient(loss, square.gamma.value) is None  # the gains are constants
        # The loss is taken before the batch moves the statistics.
        block(x, training=True)
        expected = 0.15 * (around + merged.sum())
        np.testing.assert_allclose(array(block.losses[0]), expected, rtol=1e-10)

    @pytest.mark.slow
    def test_the_custom_l2_is_part_of_what_fit_minimizes(self):
        losses = {}
        for weight in (0.0, 10.0):
            keras.utils.set_random_seed(1)
            model = self.model(custom_l2=weight)
            model.compile(keras.optimizers.SGD(1e-4), "mse")
            losses[weight] = model.train_on_batch(self.features(), self.targets(model))
        assert losses[10.0] > losses[0.0] + 1

    def test_a_channel_of_gammas_zero_has_no_energy(self):
        block = self.make(custom_l2=1.0)
        for child in block.expression.children:
            child.gamma.assign(np.zeros(4))
        assert np.isfinite(array(block._kernel_energy()))

    def test_a_negative_custom_l2_is_named(self):
        with pytest.raises(
            ValueError, match="custom_l2 must be a number at least 0. Received: -1"
        ):
            RepVGGBlock(4, custom_l2=-1)

    def test_without_batch_norms_there_are_no_gains_to_regularize(self):
        with pytest.raises(ValueError, match="custom_l2 must be 0 .* Received: 0.1"):
            RepVGGBlock(4, custom_l2=0.1, use_batch_norm=False)
        names = [variable.path for variable in self.make(use_batch_norm=False).weights]
        kinds = ["square/kernel", "square/bias", "pointwise/kernel"]
        assert [name.split("sum/")[-1] for name in names] == kinds
