import pytest

from repq_tf.layers import ConvBlock, ConvBNBlock, DenseBlock
from tests.block_case import VARIANTS, BlockCase


class TestConvBNBlock(BlockCase):
    """Depthwise. The batch norm is at the root: only "running" is another mode."""

    block = ConvBNBlock
    options = {"filters": 8, "groups": 4}
    modes = ("restored", "running")
    variants = {
        **{name: options for name, options in VARIANTS.items() if "(2, 1)" not in name},
        "bias": {"use_bias": True},
        "dense": {"filters": 6, "groups": 1},
        "dense, stride (2, 1)": {"filters": 6, "groups": 1, "strides": (2, 1)},
    }
    weights = """
        bn/gamma (8,)
        bn/beta (8,)
        bn/conv/kernel (3, 3, 1, 8)
        bn/statistics/moving_mean (8,)
        bn/statistics/moving_variance (8,)
    """


class TestConvBlock(BlockCase):
    block = ConvBlock
    options = {"filters": 6}
    modes = ("restored",)
    variants = {
        **VARIANTS,
        "no bias": {"use_bias": False},
        "depthwise": {"filters": 8, "groups": 4},
        "depthwise, stride 2": {"filters": 4, "groups": 4, "strides": 2},
    }
    weights = """
        conv/kernel (3, 3, 4, 6)
        conv/bias (6,)
    """


class TestDenseBlock(BlockCase):
    block = DenseBlock
    options = {"filters": 7}
    input_shape = (10,)
    modes = ("restored",)
    variants = {"as it is": {}, "no bias": {"use_bias": False}, "relu": {"activation": "relu"}}
    weights = """
        conv/kernel (1, 1, 10, 7)
        conv/bias (7,)
    """

    def test_only_features_are_accepted(self):
        with pytest.raises(ValueError, match=r"must be \(batch, features\).*\(None, 4, 4, 3\)"):
            DenseBlock(3).build((None, 4, 4, 3))
