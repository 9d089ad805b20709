"""MATLAB's `imresize(image, scale)`: bicubic, antialiased where it shrinks.

The published low-resolution images of super resolution are made by it; other libraries'
bicubic gives other pixels, and other PSNR.
"""

import math

import numpy as np

BORDERS = ("symmetric", "replicate")


def imresize(image: np.ndarray, scale: float, border: str = "symmetric") -> np.ndarray:
    """Resizes an image by a factor.

    Each output pixel is a weighted mean of the input around its centre u = x / scale +
    (1 - 1 / scale) / 2, pixels counted from 1, by Keys' cubic kernel (a = -1/2), which is
    stretched by 1 / scale where that shrinks. Height is resized first, then width; uint8
    images are rounded after each, half up, as MATLAB does it.

    Args:
        image: Array `(h, w, ...)`.
        scale: Factor, such as 1/2 or 3.
        border: What lies outside the image: `"symmetric"`, the image mirrored at its edge, or
            `"replicate"`, its edge pixels, as in the MATLAB releases that made the published
            Set5 and Set14.

    Returns:
        Array `(ceil(scale h), ceil(scale w), ...)`, uint8 for uint8 images and float64 for
        others.

    Example:
        >>> low = imresize(photograph, 1 / 2)
    """
    if border not in BORDERS:
        raise ValueError(f"border must be one of {BORDERS}. Received: {border!r}")
    for axis in (0, 1):
        image = _resize_axis(image, scale, axis, border)
    return image


def _resize_axis(image: np.ndarray, scale: float, axis: int, border: str) -> np.ndarray:
    """Resizes along one axis."""
    length = image.shape[axis]
    weights, indices = _weights(length, math.ceil(round(length * scale, 9)), scale, border)
    lines = np.moveaxis(image, axis, 0)
    total = np.zeros((len(weights), *lines.shape[1:]))
    for weight, index in zip(weights.T, indices.T, strict=True):
        total += weight.reshape(-1, *[1] * (lines.ndim - 1)) * lines[index]
    if image.dtype == np.uint8:
        total = np.floor(np.clip(total, 0, 255) + 0.5).astype("uint8")
    return np.moveaxis(total, 0, axis)


def _weights(
    length: int, count: int, scale: float, border: str
) -> tuple[np.ndarray, np.ndarray]:
    """The weights of each output pixel and the input pixels they belong to, `(count, taps)`."""
    stretch = min(scale, 1)
    width = 4 / stretch
    centres = np.arange(1, count + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centres - width / 2)
    pixels = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(stretch * (centres[:, None] - pixels))
    weights /= weights.sum(axis=1, keepdims=True)
    indices = pixels.astype(int) - 1
    if border == "symmetric":
        indices %= 2 * length
        indices = np.where(indices < length, indices, 2 * length - 1 - indices)
    return weights, np.clip(indices, 0, length - 1)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
