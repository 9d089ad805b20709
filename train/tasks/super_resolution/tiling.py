"""Images in tiles: the result of a network on a whole image, computed piece by piece.

Tiles overlap. Of each tile's result, what lies within a *halo* of an edge inside the image is
thrown away, since there the network saw zeros instead of the image's other pixels. Edges
that lie on the image's border have no halo: there a network pads as it does on the whole image.
So the pieces are those of the whole result if the halo is at least the network's receptive
radius and the network computes the same at every place.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the image.

    Attributes:
        read: `slice` that the network is given.
        keep: `slice` inside it whose result is kept.
    """

    read: slice
    keep: slice


def spans(length: int, size: int, halo: int) -> list[Span]:
    """Covers an axis with tiles of one size.

    Args:
        length: Pixels of the axis, at least 1.
        size: Pixels of a tile; an axis that is shorter becomes one tile.
        halo: Pixels that are thrown away at inner edges.

    Returns:
        List of `Span`, whose kept parts follow each other from 0 to `length`.

    Raises:
        ValueError: If the halos leave nothing of a tile.
    """
    if length <= size:
        return [Span(slice(0, length), slice(0, length))]
    if size <= 2 * halo:
        raise ValueError(
            f"size must be larger than two halos of {halo}, which are not kept."
            f" Received: {size}"
        )
    found, kept = [], 0
    while kept < length:
        start = min(max(kept - halo, 0), length - size)
        stop = start + size
        end = length if stop == length else stop - halo
        found.append(Span(slice(start, stop), slice(kept, end)))
        kept = end
    return found


def tiles(shape: tuple[int, int], size: tuple[int, int], halo: int) -> list[tuple[Span, Span]]:
    """Covers an image with tiles of one size.

    Args:
        shape: `(height, width)` of the image.
        size: `(height, width)` of a tile.
        halo: Pixels that are thrown away at inner edges.

    Returns:
        List of pairs of `Span`, row by row.
    """
    rows, columns = (spans(n, part, halo) for n, part in zip(shape, size, strict=True))
    return list(itertools.product(rows, columns))


def run_tiled(
    function: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    size: tuple[int, int],
    halo: int,
    scale: int,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Computes a function of an image in tiles.

    Args:
        function: From an array `(h, w, c)` to one `(scale h, scale w, d)`.
        image: Array `(height, width, c)`.
        size: `(height, width)` of a tile; all tiles of an image have the same.
        halo: At least the function's receptive radius, in pixels of the image.
        scale: How many times larger the result is.
        progress: Called after each tile with the number of tiles done, and of all.

    Returns:
        Array `(scale height, scale width, d)`.
    """
    height, width = image.shape[:2]
    whole, result = tiles((height, width), size, halo), np.empty(0)
    for done, pair in enumerate(whole, 1):
        part = function(image[tuple(span.read for span in pair)])
        if done == 1:
            result = np.empty((scale * height, scale * width, part.shape[-1]), part.dtype)
        inner = tuple(_scaled(span.keep, scale, span.read.start) for span in pair)
        result[tuple(_scaled(span.keep, scale) for span in pair)] = part[inner]
        if progress:
            progress(done, len(whole))
    return result


def _scaled(part: slice, scale: int, origin: int = 0) -> slice:
    return slice(scale * (part.start - origin), scale * (part.stop - origin))
