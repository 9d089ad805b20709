import numpy as np
import pytest
from scipy.signal import correlate2d

from repq_tf.layers import ECB
from tests.block_case import VARIANTS, BlockCase, array

SQUARE = {
    name: options
    for name, options in VARIANTS.items()
    if "kernel" not in name and "large" not in name
}


class TestECB(BlockCase):
    block = ECB
    options = {"filters": 4, "identity": True}
    modes = ("restored",)
    variants = {
        name: {**options, "identity": False} if "stride" in name else options
        for name, options in {**SQUARE, "other channels": {"filters": 6}}.items()
    }
    variants["other channels"] = {"filters": 6, "identity": False, "multiplier": 1.5}
    weights = """
        sum/square/kernel (3, 3, 4, 4)
        sum/square/bias (4,)
        sum/expanded/expand/kernel (1, 1, 4, 8)
        sum/expanded/expand/bias (8,)
        sum/expanded/expanded_square/kernel (3, 3, 8, 4)
        sum/expanded/expanded_square/bias (4,)
        sum/sobel_x_edge/sobel_x_pointwise/kernel (1, 1, 4, 4)
        sum/sobel_x_edge/sobel_x_pointwise/bias (4,)
        sum/sobel_x_edge/sobel_x_scale/gain (4,)
        sum/sobel_x_edge/sobel_x_scale/bias (4,)
        sum/sobel_y_edge/sobel_y_pointwise/kernel (1, 1, 4, 4)
        sum/sobel_y_edge/sobel_y_pointwise/bias (4,)
        sum/sobel_y_edge/sobel_y_scale/gain (4,)
        sum/sobel_y_edge/sobel_y_scale/bias (4,)
        sum/laplacian_edge/laplacian_pointwise/kernel (1, 1, 4, 4)
        sum/laplacian_edge/laplacian_pointwise/bias (4,)
        sum/laplacian_edge/laplacian_scale/gain (4,)
        sum/laplacian_edge/laplacian_scale/bias (4,)
    """

    @classmethod
    def cancelling(cls, block):
        """The filters sum to zero, so the biases before them vanish."""
        biases = {v.path for v in block.weights if "_pointwise/bias" in v.path}
        return super().cancelling(block) | biases

    def test_run_as_the_authors_run_it(self, float64):
        """One image, with SciPy: each 1x1's output is padded with its bias, then filtered."""
        block = self.make()
        weights = {v.path.removeprefix("block/sum/"): array(v) for v in block.weights}
        x = self.features(1)[0]
        expected = x + self.filtered(x, weights, "square", padding=0)
        wide = self.pointwise(x, weights, "expanded/expand")
        expected = expected + self.filtered(wide, weights, "expanded/expanded_square")
        masks = {
            "sobel_x": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
            "sobel_y": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
            "laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
        }
        for name, mask in masks.items():
            y = self.pointwise(x, weights, f"{name}_edge/{name}_pointwise")
            edge = f"{name}_edge/{name}_scale"
            for o in range(4):
                part = correlate2d(y[:, :, o], mask, "valid")
                expected[:, :, o] += (
                    weights[f"{edge}/gain"][o] * part + weights[f"{edge}/bias"][o]
                )
        np.testing.assert_allclose(array(block(x[None]))[0], expected, atol=1e-10)

    @staticmethod
    def pointwise(x, weights, name):
        bias = weights[f"{name}/bias"]
        y = x @ weights[f"{name}/kernel"][0, 0] + bias
        padded = np.ones((y.shape[0] + 2, y.shape[1] + 2, 1)) * bias
        padded[1:-1, 1:-1] = y
        return padded

    @staticmethod
    def filtered(x, weights, name, padding=None):
        if padding is not None:
            x = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        kernel, bias = weights[f"{name}/kernel"], weights[f"{name}/bias"]
        outputs = [
            sum(correlate2d(x[..., i], kernel[:, :, i, o], "valid") for i in range(x.shape[-1]))
            for o in range(kernel.shape[-1])
        ]
        return np.stack(outputs, axis=-1) + bias

    def test_an_impossible_identity_is_refused(self):
        for options in ({"filters": 8}, {"filters": 4, "strides": 2}):
            with pytest.raises(ValueError, match="identity=True needs"):
                ECB(identity=True, **options).build((None, 8, 8, 4))

    def test_other_kernel_sizes_are_refused(self):
        with pytest.raises(ValueError, match="kernel_size of ECB is 3"):
            ECB(4, kernel_size=5)
        with pytest.raises(ValueError, match="multiplier must be a number above 0"):
            ECB(4, multiplier=0)

    def test_configuration(self):
        block = self.block(**self.options, weight_bits=5, name="some_name")
        assert self.block.from_config(block.get_config()).get_config() == block.get_config()
