import math

import numpy as np
import pytest
import torch

from repq_tf.train.tasks.super_resolution.imresize import imresize


def _by_definition(line, scale, border):
    """MATLAB's rule, one pixel after the other, in plain Python."""

    def kernel(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def pixel(k):
        if border == "replicate":
            return line[min(max(k, 0), len(line) - 1)]
        while not 0 <= k < len(line):
            k = -1 - k if k < 0 else 2 * len(line) - 1 - k
        return line[k]

    stretch, out = min(scale, 1), []
    for j in range(1, math.ceil(len(line) * scale) + 1):
        centre = j / scale + (1 - 1 / scale) / 2 - 1
        reach = range(math.floor(centre - 3 / stretch), math.ceil(centre + 3 / stretch) + 1)
        weights = [kernel(stretch * (centre - k)) for k in reach]
        values = [pixel(k) for k in reach]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return np.array(out)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 1.5])
@pytest.mark.parametrize("border", ["symmetric", "replicate"])
def test_each_axis_follows_the_definition(scale, border, rng):
    image = rng.uniform(0, 255, (13, 9))
    rows = np.stack([_by_definition(column, scale, border) for column in image.T], axis=1)
    wanted = np.stack([_by_definition(row, scale, border) for row in rows])
    np.testing.assert_allclose(imresize(image, scale, border), wanted, atol=1e-9)


def test_eight_bits_are_rounded_half_up_after_each_axis(rng):
    image = rng.integers(0, 256, (16, 12)).astype("uint8")
    rows = np.stack([_by_definition(column, 0.5, "symmetric") for column in image.T], axis=1)
    rows = np.floor(np.clip(rows, 0, 255) + 0.5)
    wanted = np.stack([_by_definition(row, 0.5, "symmetric") for row in rows])
    result = imresize(image, 0.5)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.floor(np.clip(wanted, 0, 255) + 0.5))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_inside_equals_torch_with_antialias(scale, rng):
    image = rng.uniform(0, 255, (12 * scale, 14 * scale, 3))
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None])
    wanted = torch.nn.functional.interpolate(
        tensor, size=(12, 14), mode="bicubic", antialias=True
    )
    wanted = wanted[0].numpy().transpose(1, 2, 0)
    result = imresize(image, 1 / scale)
    assert result.shape == wanted.shape
    np.testing.assert_allclose(result[3:-3, 3:-3], wanted[3:-3, 3:-3], atol=1e-4)


def test_sizes_are_rounded_up_and_constants_kept():
    assert imresize(np.zeros((7, 9, 3)), 1 / 2).shape == (4, 5, 3)
    assert imresize(np.zeros((99, 33)), 1 / 3).shape == (33, 11)
    for border in ("symmetric", "replicate"):
        np.testing.assert_array_equal(imresize(np.full((8, 6), 77, "uint8"), 0.5, border), 77)
    with pytest.raises(ValueError, match="border must be one of .*Received: 'wrap'"):
        imresize(np.zeros((4, 4)), 2, "wrap")
