import pytest

from repq_tf.layers import MobileOneBlock
from tests.block_case import VARIANTS, BlockCase


class TestMobileOneBlock(BlockCase):
    """Depthwise, with two over-parameterized branches."""

    block = MobileOneBlock
    options = {"filters": 4, "groups": 4, "branches": 2}
    variants = {
        **{name: options for name, options in VARIANTS.items() if "(2, 1)" not in name},
        "pointwise": {"kernel_size": 1, "groups": 1, "filters": 6},
        "pointwise, skip": {"kernel_size": 1, "groups": 1},
        "dense": {"groups": 1, "filters": 6, "branches": 3},
    }
    weights = """
        sum/conv0_bn/gamma (4,)
        sum/conv0_bn/beta (4,)
        sum/conv0_bn/conv0/kernel (3, 3, 1, 4)
        sum/conv0_bn/statistics/moving_mean (4,)
        sum/conv0_bn/statistics/moving_variance (4,)
        sum/conv1_bn/gamma (4,)
        sum/conv1_bn/beta (4,)
        sum/conv1_bn/conv1/kernel (3, 3, 1, 4)
        sum/conv1_bn/statistics/moving_mean (4,)
        sum/conv1_bn/statistics/moving_variance (4,)
        sum/scale_bn/gamma (4,)
        sum/scale_bn/beta (4,)
        sum/scale_bn/scale/kernel (1, 1, 1, 4)
        sum/scale_bn/statistics/moving_mean (4,)
        sum/scale_bn/statistics/moving_variance (4,)
        sum/skip_bn/gamma (4,)
        sum/skip_bn/beta (4,)
        sum/skip_bn/statistics/moving_mean (4,)
        sum/skip_bn/statistics/moving_variance (4,)
    """

    @pytest.mark.parametrize(
        ("options", "branches"),
        [
            ({}, 4),
            ({"strides": 2}, 3),
            ({"groups": 1, "filters": 6}, 3),
            ({"groups": 1, "kernel_size": 1, "filters": 6}, 2),
            ({"groups": 1, "kernel_size": 1, "branches": 4}, 5),
        ],
    )
    def test_branches_that_shapes_allow(self, options, branches):
        assert len(self.make(**options).expression.children) == branches

    def test_at_least_one_branch(self):
        with pytest.raises(ValueError, match="branches must be a positive"):
            MobileOneBlock(4, branches=0)
