import numpy as np

from repq_tf.layers import DiracConv, WeightNormConv
from tests.block_case import VARIANTS, BlockCase, array


class TestWeightNormConv(BlockCase):
    block = WeightNormConv
    options = {"filters": 6}
    modes = ("restored", "running")
    variants = {**VARIANTS, "no batch norm": {"use_batch_norm": False}, "groups": {"groups": 2}}
    weights = """
        bn/gamma (6,)
        bn/beta (6,)
        bn/length/gain (6,)
        bn/length/direction_unit/direction/kernel (3, 3, 4, 6)
        bn/statistics/moving_mean (6,)
        bn/statistics/moving_variance (6,)
    """

    def test_filters_have_the_length_of_the_vector(self):
        block = self.make()
        merged = array(block.inner.merge().kernel)
        lengths = np.sqrt((merged**2).sum(axis=(0, 1, 2)))
        np.testing.assert_allclose(lengths, np.abs(array(block.inner.gain)), rtol=1e-5)


class TestDiracConv(BlockCase):
    block = DiracConv
    options = {"filters": 6}
    gradient_bits = 8
    modes = ("restored", "running")
    variants = {**VARIANTS, "no batch norm": {"use_batch_norm": False}, "groups": {"groups": 2}}
    weights = """
        bn/gamma (6,)
        bn/beta (6,)
        bn/sum/dirac_scale/gain (6,)
        bn/sum/length/gain (6,)
        bn/sum/length/direction_unit/direction/kernel (3, 3, 4, 6)
        bn/statistics/moving_mean (6,)
        bn/statistics/moving_variance (6,)
    """

    def test_it_starts_near_the_identity(self):
        block = DiracConv(6, use_batch_norm=False, name="block")
        block.build((None, *self.input_shape))
        kernel = array(block.merge().kernel)
        noise = kernel.copy()
        noise[1, 1] -= np.eye(4, 6)
        np.testing.assert_allclose(np.sqrt((noise**2).sum(axis=(0, 1, 2))), 0.1, rtol=1e-5)
