"""Pixels as super-resolution networks see them: luma, and the range of their input."""

import numpy as np

# One grey level in the network's numbers: a power of two, so that all 256 levels are exact.
PIXEL_STEP = 1 / 128

# The same for numbers of 16 bits, finer than a level; 0 to 255 is half of their range.
FINE_STEP = PIXEL_STEP / 128

# ITU-R BT.601 with Y in 16 to 235, for R, G and B in 0 to 255 (MATLAB's rgb2ycbcr).
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_BLUE = np.array([-37.797, -74.203, 112.0]) / 255
_RED = np.array([112.0, -93.786, -18.214]) / 255
_YCBCR = np.stack([_LUMA, _BLUE, _RED], axis=1)
_OFFSET = np.array([16.0, 128.0, 128.0])


def luma(rgb: np.ndarray) -> np.ndarray:
    """Returns the Y of colours, not rounded: `16 + (65.481 R + 128.553 G + 24.966 B) / 255`.

    Args:
        rgb: Array `(..., 3)` of values in 0 to 255.

    Returns:
        float64 array `(..., 1)`.
    """
    return np.asarray(rgb, "float64") @ _LUMA[:, None] + 16


def to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """Returns Y, Cb and Cr of colours, not rounded; Cb and Cr are in 16 to 240 around 128.

    Args:
        rgb: Array `(..., 3)` of values in 0 to 255.

    Returns:
        float64 array `(..., 3)`, whose first channel is `luma(rgb)`.
    """
    return np.asarray(rgb, "float64") @ _YCBCR + _OFFSET


def to_rgb(ycbcr: np.ndarray) -> np.ndarray:
    """The inverse of `to_ycbcr`, not clipped: not every Y, Cb and Cr is a colour."""
    return (np.asarray(ycbcr, "float64") - _OFFSET) @ np.linalg.inv(_YCBCR)


def to_network(pixels: np.ndarray) -> np.ndarray:
    """Maps pixels to a network's numbers, `(p - 128) / 128`.

    The 256 levels of a pixel are the int8 numbers on a grid of step `PIXEL_STEP`, exactly,
    and the zeros with which convolutions pad are a middle grey.

    Args:
        pixels: Array of values in 0 to 255, whole or not.

    Returns:
        float32 array of the same shape.
    """
    return ((np.asarray(pixels, "float64") - 128) * PIXEL_STEP).astype("float32")


def to_pixels(values: np.ndarray) -> np.ndarray:
    """Maps a network's numbers to pixels in 0 to 255, clipped but not rounded.

    Args:
        values: What `to_network` returned, or a network's output.

    Returns:
        float64 array of the same shape.
    """
    return np.clip(np.asarray(values, "float64") / PIXEL_STEP + 128, 0, 255)
