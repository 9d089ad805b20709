"""RandAugment (arXiv 1909.13719) of uint8 images with Pillow.

Keras's layer of this name draws one choice of operations for a whole batch and computes all of
them, from a state that parallel readers would share. Here each image has its own choice, which
is a function of a generator alone, on every backend.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# The paper's magnitude for ImageNet, 9 of 10.
MAGNITUDE = 0.9
_GREY = 128


def randaugment(
    image: np.ndarray, count: int, rng: np.random.Generator, magnitude: float = MAGNITUDE
) -> np.ndarray:
    """Returns an image after random operations of the paper's fourteen.

    Args:
        image: uint8 array `(h, w, c)`, c being 1 or 3.
        count: Number of operations, drawn with replacement.
        rng: A `numpy.random.Generator`; equal generators give equal images.
        magnitude: Strength of every operation, 0 to 1.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    for index in rng.integers(len(_OPERATIONS), size=count):
        sign = 1 if rng.random() < 0.5 else -1
        picture = _OPERATIONS[index](picture, magnitude, sign)
    return np.asarray(picture).reshape(image.shape)


def _warp(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Maps each pixel (x, y) of the result to one of the picture; grey comes in."""
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=fill,
    )


def _rotate(picture: Image.Image, strength: float, sign: int) -> Image.Image:
    angle = np.deg2rad(30 * strength * sign)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (picture.width - 1) / 2, (picture.height - 1) / 2
    return _warp(picture, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def _shift(share: float) -> float:
    """Returns the shift in pixels; 100 of 224 at full strength."""
    return share * 100 / 224


def _enhance(kind: Any) -> Callable[[Image.Image, float, int], Image.Image]:
    return lambda picture, strength, sign: kind(picture).enhance(1 + 0.9 * strength * sign)


_OPERATIONS = (
    lambda picture, strength, sign: picture,
    lambda picture, strength, sign: ImageOps.autocontrast(picture),
    lambda picture, strength, sign: ImageOps.equalize(picture),
    lambda picture, strength, sign: ImageOps.posterize(picture, 8 - round(4 * strength)),
    lambda picture, strength, sign: ImageOps.solarize(picture, round(256 * (1 - strength))),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _rotate,
    lambda picture, strength, sign: _warp(picture, (1, 0.3 * strength * sign, 0, 0, 1, 0)),
    lambda picture, strength, sign: _warp(picture, (1, 0, 0, 0.3 * strength * sign, 1, 0)),
    lambda picture, strength, sign: _warp(
        picture, (1, 0, sign * _shift(strength) * picture.width, 0, 1, 0)
    ),
    lambda picture, strength, sign: _warp(
        picture, (1, 0, 0, 0, 1, sign * _shift(strength) * picture.height)
    ),
)
