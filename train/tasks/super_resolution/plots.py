"""Pictures of what super-resolution networks do, side by side."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from repq_tf.train.run.plots import grid, save
from repq_tf.train.tasks.super_resolution.color import luma
from repq_tf.train.tasks.super_resolution.image_quality import psnr, shave
from repq_tf.train.tasks.super_resolution.pair import Pair

# Height and width, in pixels, of the detail that is shown large.
_DETAIL = 96

# Errors of this many grey levels and more are the brightest colour.
_WORST = 32


def draw_comparison(
    pair: Pair, outputs: Mapping[str, np.ndarray], scale: int, test_set: str, folder: str
) -> str:
    """Draws an image's input, what was made of it with the PSNR, and maps of the errors.

    The upper row shows the detail in the image's middle, the lower row what is wrong with
    the luma of the whole image.

    Args:
        pair: The `data.pairs.Pair`.
        outputs: Label -> array `(h, w, 1 or 3)` of pixels within 0 to 255.
        scale: Scale of the pair, and the number of pixels at the border that are not judged.
        test_set: Name of the test set.
        folder: The folder to write to.

    Returns:
        The file.
    """
    wanted = luma(pair.high)[..., 0]
    figure, axes = grid(2, len(outputs) + 2, width=2.6)
    for axis in axes.flat:
        axis.axis("off")
    grey = next(iter(outputs.values())).shape[-1] == 1
    small, large = ((luma(x) if grey else x) for x in (pair.low, pair.high))
    _show(axes[0, 0], _detail(small, _DETAIL // scale), "input")
    _show(axes[0, -1], _detail(large, _DETAIL), "photograph")
    for (top, bottom), (label, pixels) in zip(axes.T[1:], outputs.items(), strict=False):
        y = pixels[..., 0] if grey else luma(pixels)[..., 0]
        value = psnr(shave(y, scale), shave(wanted, scale))
        _show(top, _detail(pixels, _DETAIL), f"{label}, {value:.2f} dB")
        bottom.imshow(np.abs(y - wanted), cmap="magma", vmin=0, vmax=_WORST)
        bottom.set_title("error of the luma", fontsize=8)
    axes[1, 0].text(0, 0.5, f"black 0, white {_WORST} grey levels", fontsize=8)
    path = os.path.join(folder, f"{test_set}_{os.path.basename(pair.name)}.png")
    save(figure, path)
    return path


def _detail(image: np.ndarray, size: int) -> np.ndarray:
    """The middle of an image."""
    top, left = (max(0, (n - size) // 2) for n in image.shape[:2])
    return image[top : top + size, left : left + size]


def _show(axis: Any, pixels: np.ndarray, title: str) -> None:
    picture = np.rint(pixels).astype("uint8").squeeze()
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(title, fontsize=8)
