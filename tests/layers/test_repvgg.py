import pytest

from repq_tf.layers import RepVGGBlock
from tests.block_case import VARIANTS, BlockCase


class TestRepVGGBlock(BlockCase):
    block = RepVGGBlock
    options = {"filters": 4}
    variants = {
        **VARIANTS,
        "wider, hence no identity": {"filters": 8},
        "groups": {"groups": 2},
        "depthwise": {"groups": 4},
        "depthwise, stride 2": {"groups": 4, "strides": 2},
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
