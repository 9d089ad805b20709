import numpy as np
import pytest

from repq_tf.branches import NumpyReading
from repq_tf.layers import OREPABlock, OREPARepVGGBlock, OREPAStem
from repq_tf.layers.blocks.orepa import frequency_prior
from tests.block_case import VARIANTS, BlockCase, array

ODD = {name: options for name, options in VARIANTS.items() if "even" not in name}


class TestOREPABlock(BlockCase):
    block = OREPABlock
    options = {"filters": 6}
    modes = ("restored", "running")
    variants = {
        **VARIANTS,
        "5x5": {"kernel_size": 5},
        "1x1": {"kernel_size": 1},
        "1x1 to fewer channels": {"kernel_size": 1, "filters": 2, "strides": 2},
        "groups": {"groups": 2},
    }
    weights = """
        bn/gamma (6,)
        bn/beta (6,)
        bn/generated/sum/origin_scale/gain (6,)
        bn/generated/sum/origin_scale/origin/kernel (3, 3, 4, 6)
        bn/generated/sum/average/first/kernel (1, 1, 4, 6)
        bn/generated/sum/average/filters_scale/gain (6,)
        bn/generated/sum/prior/first/kernel (1, 1, 4, 6)
        bn/generated/sum/prior/filters_scale/gain (6,)
        bn/generated/sum/stacked_scale/gain (6,)
        bn/generated/sum/stacked_scale/stacked/first/residual/kernel (1, 1, 4, 4)
        bn/generated/sum/stacked_scale/stacked/square/kernel (3, 3, 4, 6)
        bn/generated/sum/pointwise_scale/gain (6,)
        bn/generated/sum/pointwise_scale/pointwise/kernel (1, 1, 4, 6)
        bn/generated/sum/separable_scale/gain (6,)
        bn/generated/sum/separable_scale/separable/depthwise/kernel (3, 3, 1, 32)
        bn/generated/sum/separable_scale/separable/pointwise/kernel (1, 1, 32, 6)
        bn/statistics/moving_mean (6,)
        bn/statistics/moving_variance (6,)
    """

    def test_the_kernel_is_the_sum_of_the_paper(self, float64):
        """Each branch's kernel written out with loops, after the paper's Section 3.2."""
        block = self.make(filters=5)
        weights = {v.path.split("block/bn/generated/sum/")[-1]: array(v) for v in block.weights}
        origin = weights["origin_scale/origin/kernel"]
        expected = origin * weights["origin_scale/gain"]
        prior = frequency_prior((3, 3), 5)
        average = weights["average/first/kernel"][0, 0]
        cosine = weights["prior/first/kernel"][0, 0]
        pointwise = weights["pointwise_scale/pointwise/kernel"][0, 0]
        chain = "stacked_scale/stacked"
        first = np.eye(4) + weights[f"{chain}/first/residual/kernel"][0, 0]
        square = weights[f"{chain}/square/kernel"]
        depthwise = weights["separable_scale/separable/depthwise/kernel"]
        separable = weights["separable_scale/separable/pointwise/kernel"][0, 0]
        for o in range(5):
            expected[:, :, :, o] += weights["average/filters_scale/gain"][o] * average[:, o] / 9
            expected[1, 1, :, o] += weights["pointwise_scale/gain"][o] * pointwise[:, o]
            for i in range(4):
                gain = weights["prior/filters_scale/gain"][o] * cosine[i, o]
                expected[:, :, i, o] += gain * prior[:, :, o]
                for m in range(4):
                    gain = weights["stacked_scale/gain"][o] * first[i, m]
                    expected[:, :, i, o] += gain * square[:, :, m, o]
                for t in range(8):
                    gain = weights["separable_scale/gain"][o] * separable[8 * i + t, o]
                    expected[:, :, i, o] += gain * depthwise[:, :, 0, 8 * i + t]
        merged = block.inner.merge(NumpyReading())
        np.testing.assert_allclose(merged.kernel, expected, atol=1e-12)

    def test_initial_values_are_the_authors(self):
        block = OREPABlock(64, name="block")
        block.build((None, 8, 8, 32))
        weights = {
            v.path.split("/generated/sum/")[-1]: array(v)
            for v in block.weights
            if "gain" in v.path
        }
        starts = {name.removesuffix("_scale/gain"): set(v) for name, v in weights.items()}
        assert starts == {
            "origin": {0.25},
            "average/filters": {0.25},
            "prior/filters": {0.0},
            "stacked": {0.5},
            "pointwise": {1.0},
            "separable": {0.5},
        }
        origin = next(v for v in block.weights if v.path.endswith("origin/kernel"))
        bound = np.sqrt(6 / (9 * 32))
        assert 0.95 * bound < np.abs(array(origin)).max() <= bound

    def test_one_convolution_of_features_in_floating_point(self, monkeypatch):
        from repq_tf.branches import wrappers

        calls = []
        convolve = wrappers.convolve
        monkeypatch.setattr(
            wrappers, "convolve", lambda *args: calls.append(args) or convolve(*args)
        )
        block = self.make()
        block(self.features(2), training=True)
        assert len(calls) == 1


class TestFrequencyPrior:
    def test_every_filter_is_a_cosine_that_is_not_zero(self):
        for size in ((3, 3), (5, 5), (3, 5), (2, 2)):
            prior = frequency_prior(size, 64)
            assert prior.shape == (*size, 64)
            assert (np.abs(prior).max(axis=(0, 1)) > 0.3).all()
            assert np.ptp(prior[..., :32], axis=1).max() == 0  # constant along the width
            assert np.ptp(prior[..., 32:], axis=0).max() == 0

    def test_the_authors_values_where_theirs_are_not_zero(self):
        prior = frequency_prior((3, 3), 64)
        for channel in range(64):
            index = channel if channel < 32 else channel - 32
            wave = np.cos(np.pi * (np.arange(3) + 0.5) * (index + 1) / 3)
            if np.abs(wave).max() > 1e-9:
                filters = prior[:, :, channel]
                actual = filters[:, 0] if channel < 32 else filters[0]
                np.testing.assert_allclose(actual, wave, atol=1e-12)


@pytest.mark.slow(1)  # what it shares with the block is seen there
class TestOREPAStem(BlockCase):
    block = OREPAStem
    options = {"filters": 6, "kernel_size": 5}
    modes = ("restored", "running")
    variants = {**ODD, "7x7, stride 2": {"kernel_size": 7, "padding": 3, "strides": 2}}
    weights = """
        bn/gamma (6,)
        bn/beta (6,)
        bn/generated/chain/link0/sum/origin_scale/gain (6,)
        bn/generated/chain/link0/sum/origin_scale/origin/kernel (3, 3, 4, 6)
        bn/generated/chain/link0/sum/average/first/kernel (1, 1, 4, 6)
        bn/generated/chain/link0/sum/average/filters_scale/gain (6,)
        bn/generated/chain/link0/sum/prior/first/kernel (1, 1, 4, 6)
        bn/generated/chain/link0/sum/prior/filters_scale/gain (6,)
        bn/generated/chain/link0/sum/stacked_scale/gain (6,)
        bn/generated/chain/link0/sum/stacked_scale/stacked/first/residual/kernel (1, 1, 4, 4)
        bn/generated/chain/link0/sum/stacked_scale/stacked/square/kernel (3, 3, 4, 6)
        bn/generated/chain/link0/sum/pointwise_scale/gain (6,)
        bn/generated/chain/link0/sum/pointwise_scale/pointwise/kernel (1, 1, 4, 6)
        bn/generated/chain/link0/sum/separable_scale/gain (6,)
        bn/generated/chain/link0/sum/separable_scale/separable/depthwise/kernel (3, 3, 1, 32)
        bn/generated/chain/link0/sum/separable_scale/separable/pointwise/kernel (1, 1, 32, 6)
        bn/generated/chain/link1/sum/origin_scale/gain (6,)
        bn/generated/chain/link1/sum/origin_scale/origin/kernel (3, 3, 6, 6)
        bn/generated/chain/link1/sum/average/first/kernel (1, 1, 6, 6)
        bn/generated/chain/link1/sum/average/filters_scale/gain (6,)
        bn/generated/chain/link1/sum/prior/first/kernel (1, 1, 6, 6)
        bn/generated/chain/link1/sum/prior/filters_scale/gain (6,)
        bn/generated/chain/link1/sum/stacked_scale/gain (6,)
        bn/generated/chain/link1/sum/stacked_scale/stacked/first/residual/kernel (1, 1, 6, 6)
        bn/generated/chain/link1/sum/stacked_scale/stacked/square/kernel (3, 3, 6, 6)
        bn/generated/chain/link1/sum/pointwise_scale/gain (6,)
        bn/generated/chain/link1/sum/pointwise_scale/pointwise/kernel (1, 1, 6, 6)
        bn/generated/chain/link1/sum/separable_scale/gain (6,)
        bn/generated/chain/link1/sum/separable_scale/separable/depthwise/kernel (3, 3, 1, 48)
        bn/generated/chain/link1/sum/separable_scale/separable/pointwise/kernel (1, 1, 48, 6)
        bn/statistics/moving_mean (6,)
        bn/statistics/moving_variance (6,)
    """

    @pytest.mark.parametrize("size", [1, 4, (3, 5)])
    def test_odd_square_kernels_alone(self, size):
        with pytest.raises(ValueError, match="kernel_size must be odd"):
            OREPAStem(6, size)

    def test_configuration(self):
        block = self.block(**self.options, weight_bits=5, name="some_name")
        assert self.block.from_config(block.get_config()).get_config() == block.get_config()


@pytest.mark.slow(1)
class TestOREPARepVGGBlock(BlockCase):
    block = OREPARepVGGBlock
    options = {"filters": 4}
    variants = {**VARIANTS, "wider, hence no identity": {"filters": 8}}
    weights = """
        sum/generated_bn/gamma (4,)
        sum/generated_bn/beta (4,)
        sum/generated_bn/generated/sum/origin_scale/gain (4,)
        sum/generated_bn/generated/sum/origin_scale/origin/kernel (3, 3, 4, 4)
        sum/generated_bn/generated/sum/average/first/kernel (1, 1, 4, 4)
        sum/generated_bn/generated/sum/average/filters_scale/gain (4,)
        sum/generated_bn/generated/sum/prior/first/kernel (1, 1, 4, 4)
        sum/generated_bn/generated/sum/prior/filters_scale/gain (4,)
        sum/generated_bn/generated/sum/stacked_scale/gain (4,)
        sum/generated_bn/generated/sum/stacked_scale/stacked/first/residual/kernel (1, 1, 4, 4)
        sum/generated_bn/generated/sum/stacked_scale/stacked/square/kernel (3, 3, 4, 4)
        sum/generated_bn/generated/sum/separable_scale/gain (4,)
        sum/generated_bn/generated/sum/separable_scale/separable/depthwise/kernel (3, 3, 1, 32)
        sum/generated_bn/generated/sum/separable_scale/separable/pointwise/kernel (1, 1, 32, 4)
        sum/generated_bn/statistics/moving_mean (4,)
        sum/generated_bn/statistics/moving_variance (4,)
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
