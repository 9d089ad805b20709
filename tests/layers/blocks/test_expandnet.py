import pytest

from repq_tf.layers import ExpandNet
from tests.block_case import VARIANTS, BlockCase


class TestExpandNet(BlockCase):
    block = ExpandNet
    options = {"filters": 6, "rate": 2}
    modes = ("restored", "running")
    variants = {
        **VARIANTS,
        "biases": {"use_bias": True},
        "no batch norm": {"use_batch_norm": False, "use_bias": True},
        "kernel expanded": {"expansion": "CK", "kernel_size": 5, "use_bias": True},
        "groups": {"groups": 2},
    }
    weights = """
        bn/gamma (6,)
        bn/beta (6,)
        bn/chain/conv0/kernel (1, 1, 4, 8)
        bn/chain/conv1/kernel (3, 3, 8, 12)
        bn/chain/conv2/kernel (1, 1, 12, 6)
        bn/statistics/moving_mean (6,)
        bn/statistics/moving_variance (6,)
    """

    def test_bad_expansions_are_named(self):
        with pytest.raises(ValueError, match="expansion must be one of CL, CK.*'CX'"):
            ExpandNet(4, expansion="CX")
        for size in (3, 4, (5, 7)):
            with pytest.raises(ValueError, match="kernel_size must be odd"):
                ExpandNet(4, size, expansion="CK")
        with pytest.raises(ValueError, match="rate must be a positive"):
            ExpandNet(4, rate=0)
