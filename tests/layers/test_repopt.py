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

    def test_scales_start_as_told_and_stay(self):
        block = CSLABlock(4, scales=0.5, identity_scale=2.0, name="block")
        block.build((None, *self.input_shape))
        gains = {v.path.split("/")[-2]: v for v in block.weights if v.path.endswith("gain")}
        assert {name: set(array(v)) for name, v in gains.items()} == {
            "square_scale": {0.5},
            "pointwise_scale": {0.5},
            "identity_scale": {2.0},
        }
        assert not any(v.trainable for v in gains.values())
