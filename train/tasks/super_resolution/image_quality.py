"""PSNR and SSIM of images, as super resolution reports them."""

import math

import numpy as np

from repq_tf.train.tasks.super_resolution.color import luma

_PEAK = 255.0
WINDOW = 11  # of SSIM
_SIGMA = 1.5


def shave(image: np.ndarray, border: int) -> np.ndarray:
    """Returns an image `(h, w)` without the pixels at its border, which are not judged."""
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio, `10 log10(255^2 / mean((image - reference)^2))`, in dB.

    Args:
        image: Array of values in 0 to 255.
        reference: Array of the same shape.

    Returns:
        A float; infinite for equal images.
    """
    difference = np.asarray(image, "float64") - np.asarray(reference, "float64")
    error = float(np.mean(np.square(difference)))
    return 10 * math.log10(_PEAK**2 / error) if error else math.inf


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004), the mean over one channel.

    Gaussian windows of 11x11 pixels and sigma 1.5 that lie inside the image, K1 = 0.01,
    K2 = 0.03, as in the authors' program.

    Args:
        image: Array `(h, w)` of values in 0 to 255, at least 11x11.
        reference: Array of the same shape.

    Returns:
        A float, 1 for equal images.

    Raises:
        ValueError: If the images are smaller than the window.
    """
    x, y = np.asarray(image, "float64"), np.asarray(reference, "float64")
    if min(x.shape) < WINDOW:
        raise ValueError(f"image must be at least 11x11. Received: {x.shape}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(similarity.mean())


def _blur(image: np.ndarray) -> np.ndarray:
    """Means over the windows that lie inside the image."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    for _ in range(2):
        rows = image.shape[0] - WINDOW + 1
        image = sum(w * image[k : k + rows] for k, w in enumerate(weights)).T
    return image


def judge(pixels: np.ndarray, photograph: np.ndarray, border: int) -> dict[str, float]:
    """Returns the metrics of an upscaled image: PSNR and SSIM of the luma.

    Luma is always BT.601's, in 16 to 235. A grey photograph counts as RGB of three equal
    channels, so its levels too go through the factor 219/255: its PSNR is 20 log10(255/219) =
    1.32 dB above that of programs that judge the levels of grey photographs themselves.

    Args:
        pixels: Array `(h, w, 1)`, luma, or `(h, w, 3)`, RGB, within 0 to 255, not rounded.
        photograph: The true image, uint8 `(h, w, 3)`.
        border: Number of pixels at the border that are not judged.

    Returns:
        `psnr` and `ssim` of the pixels as they are against the luma as it is; `psnr_rounded`
        and `ssim_rounded` of the image of 8 bits. Luma that is upscaled as such is then
        compared with rounded luma, as MATLAB's `rgb2ycbcr` makes it.
    """
    wanted, rounded = luma(photograph), np.rint(pixels)
    exact = pixels
    if pixels.shape[-1] == 3:
        exact, rounded, wanted_rounded = luma(pixels), luma(rounded), wanted
    else:
        wanted_rounded = np.rint(wanted)
    metrics = {}
    for end, image, reference in (("", exact, wanted), ("_rounded", rounded, wanted_rounded)):
        image, reference = (shave(x[..., 0], border) for x in (image, reference))
        metrics[f"psnr{end}"] = psnr(image, reference)
        metrics[f"ssim{end}"] = ssim(image, reference)
    return metrics
