import numpy as np

from repq_tf.layers import DiverseBranchBlock
from tests.block_case import VARIANTS, BlockCase, array


class TestDiverseBranchBlock(BlockCase):
    block = DiverseBranchBlock
    options = {"filters": 6}
    variants = {
        **VARIANTS,
        "other internal channels": {"internal_channels": 5},
        "groups": {"groups": 2},
        "depthwise": {"filters": 4, "groups": 4},
        "depth multiplier": {"filters": 8, "groups": 4},
    }
    weights = """
        sum/square_bn/gamma (6,)
        sum/square_bn/beta (6,)
        sum/square_bn/square/kernel (3, 3, 4, 6)
        sum/square_bn/statistics/moving_mean (6,)
        sum/square_bn/statistics/moving_variance (6,)
        sum/stacked_bn/gamma (6,)
        sum/stacked_bn/beta (6,)
        sum/stacked_bn/stacked/first_bn/gamma (4,)
        sum/stacked_bn/stacked/first_bn/beta (4,)
        sum/stacked_bn/stacked/first_bn/first/residual/kernel (1, 1, 4, 4)
        sum/stacked_bn/stacked/first_bn/statistics/moving_mean (4,)
        sum/stacked_bn/stacked/first_bn/statistics/moving_variance (4,)
        sum/stacked_bn/stacked/square/kernel (3, 3, 4, 6)
        sum/stacked_bn/statistics/moving_mean (6,)
        sum/stacked_bn/statistics/moving_variance (6,)
        sum/averaged_bn/gamma (6,)
        sum/averaged_bn/beta (6,)
        sum/averaged_bn/averaged/first_bn/gamma (6,)
        sum/averaged_bn/averaged/first_bn/beta (6,)
        sum/averaged_bn/averaged/first_bn/first/kernel (1, 1, 4, 6)
        sum/averaged_bn/averaged/first_bn/statistics/moving_mean (6,)
        sum/averaged_bn/averaged/first_bn/statistics/moving_variance (6,)
        sum/averaged_bn/statistics/moving_mean (6,)
        sum/averaged_bn/statistics/moving_variance (6,)
        sum/pointwise_bn/gamma (6,)
        sum/pointwise_bn/beta (6,)
        sum/pointwise_bn/pointwise/kernel (1, 1, 4, 6)
        sum/pointwise_bn/statistics/moving_mean (6,)
        sum/pointwise_bn/statistics/moving_variance (6,)
    """

    def test_a_single_initial_branch(self):
        """single_init: the function starts as the square branch alone."""
        block = DiverseBranchBlock(6, single_init=True, name="block")
        block.build((None, *self.input_shape))
        x = self.features(2)
        square = block.expression.children[0]
        expected = array(square(x, window=((1, 1), (1, 1))))
        np.testing.assert_allclose(array(block(x)), expected, atol=1e-5)
