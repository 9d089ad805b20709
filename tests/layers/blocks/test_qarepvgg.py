import numpy as np
import pytest

from repq_tf.branches import NumpyReading
from repq_tf.layers import QARepVGGBlock
from tests.block_case import VARIANTS, BlockCase, array


class TestQARepVGGBlock(BlockCase):
    block = QARepVGGBlock
    options = {"filters": 4}
    variants = {
        **VARIANTS,
        **{variant: {"variant": variant} for variant in ("S1", "S2", "S3")},
        "wider, hence no identity": {"filters": 8},
        "groups": {"groups": 2},
    }
    weights = """
        bn/gamma (4,)
        bn/beta (4,)
        bn/sum/square_bn/gamma (4,)
        bn/sum/square_bn/beta (4,)
        bn/sum/square_bn/square/kernel (3, 3, 4, 4)
        bn/sum/square_bn/statistics/moving_mean (4,)
        bn/sum/square_bn/statistics/moving_variance (4,)
        bn/sum/pointwise/kernel (1, 1, 4, 4)
        bn/statistics/moving_mean (4,)
        bn/statistics/moving_variance (4,)
    """

    def test_the_merged_kernel_of_the_paper(self, float64):
        """K = W3 t3 + W1 + I; W = K t, b = beta + (beta3 - mean3 t3 - mean) t."""
        block = self.make()
        weights = {v.path.removeprefix("block/bn/"): array(v) for v in block.weights}

        def norm(name):
            gamma, beta = weights[f"{name}gamma"], weights[f"{name}beta"]
            mean = weights[f"{name}statistics/moving_mean"]
            gain = gamma / np.sqrt(weights[f"{name}statistics/moving_variance"] + 1e-5)
            return gain, beta, mean

        inner, beta3, mean3 = norm("sum/square_bn/")
        outer, beta, mean = norm("")
        kernel = weights["sum/square_bn/square/kernel"] * inner
        kernel[1, 1] += weights["sum/pointwise/kernel"][0, 0] + np.eye(4)
        merged = block.merge(NumpyReading())
        np.testing.assert_allclose(merged.kernel, kernel * outer, atol=1e-12)
        bias = beta + (beta3 - mean3 * inner - mean) * outer
        np.testing.assert_allclose(merged.bias, bias, atol=1e-12)

    @pytest.mark.parametrize(("variant", "norms"), [("S1", 3), ("S2", 2), ("S3", 1), ("S4", 2)])
    def test_batch_norms_of_the_ablation(self, variant, norms):
        block = self.make(variant=variant)
        assert sum("gamma" in v.path for v in block.weights) == norms
        assert len(block.inner.children) == 3

    def test_unknown_variants_are_refused(self):
        with pytest.raises(ValueError, match="variant must be one of S1, S2, S3, S4.*'S5'"):
            QARepVGGBlock(4, variant="S5")
