import numpy as np
import pytest
import tensorflow as tf

from repq_tf.layers import CSLABlock
from tests.block_case import VARIANTS, BlockCase, array


class TestCSLABlock(BlockCase):
    """With trained scales, as in the search stage."""

    block = CSLABlock
    options = {"filters": 4, "trainable_scales": True}
    modes = ("restored", "running")
    variants = {
        **VARIANTS,
        "constant scales": {"trainable_scales": False},
        "wider, hence no identity": {"filters": 8},
        "groups": {"groups": 2},
    }
    weights = """
        bn/gamma (4,)
        bn/beta (4,)
        bn/sum/square_scale/gain (4,)
        bn/sum/square_scale/square/kernel (3, 3, 4, 4)
        bn/sum/pointwise_scale/gain (4,)
        bn/sum/pointwise_scale/pointwise/kernel (1, 1, 4, 4)
        bn/sum/identity_scale/gain (4,)
        bn/statistics/moving_mean (4,)
        bn/statistics/moving_variance (4,)
    """

    def test_scales_start_as_told_and_only_the_identitys_is_trained(self):
        block = CSLABlock(4, scales=0.5, identity_scale=2.0, name="block")
        block.build((None, *self.input_shape))
        gains = {v.path.split("/")[-2]: v for v in block.weights if v.path.endswith("gain")}
        assert {name: (set(array(v)), v.trainable) for name, v in gains.items()} == {
            "square_scale": ({0.5}, False),
            "pointwise_scale": ({0.5}, False),
            "identity_scale": ({2.0}, True),
        }

    @pytest.mark.slow(1)
    @pytest.mark.parametrize("variant", variants)
    def test_multiplier_is_what_the_merged_kernels_jacobian_says(self, variant):
        """A step along the parameters' gradients J^T G moves the kernel by J J^T G."""
        block = self.make(**{**self.variants[variant], "trainable_scales": False})
        parameters = [v.value for v in block.inner.trainable_variables]
        with tf.GradientTape() as tape:
            kernel = tf.convert_to_tensor(block.inner.merge().kernel)
        rows = tape.jacobian(kernel, parameters)
        rows = np.concatenate([np.reshape(r, (tf.size(kernel), -1)) for r in rows], axis=1)
        moved = rows @ rows.T
        np.testing.assert_array_equal(moved, np.diag(np.diag(moved)))
        for power in (1, 2):
            expected = np.sum(np.abs(rows) ** power, axis=1)
            actual = block.multiplier(power)
            assert actual.shape == tuple(kernel.shape)
            np.testing.assert_allclose(actual, np.reshape(expected, kernel.shape), rtol=1e-5)

    def test_multiplier_by_hand(self):
        block = CSLABlock(2, scales=-0.5)
        block.build((None, 5, 5, 2))
        square, pointwise, identity = block.inner.children
        pointwise.gain.assign([2.0, 3.0])
        identity.gain.assign([7.0, 7.0])  # trained, hence no constant: it counts as 1
        expected = np.full((3, 3, 2, 2), 0.25)
        expected[1, 1] += [[5.0, 9.0], [4.0, 10.0]]
        np.testing.assert_array_equal(block.multiplier(), expected)
        expected = np.full((3, 3, 2, 2), 0.5)
        expected[1, 1] += [[3.0, 3.0], [2.0, 4.0]]
        np.testing.assert_array_equal(block.multiplier(power=1), expected)
