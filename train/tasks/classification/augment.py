"""Random and central crops of batches of uint8 images, as pure functions of a generator."""

import math

import numpy as np

# From this height on, `auto` crops random areas instead of shifting by an eighth.
LARGE_IMAGE = 65


def resolve_kind(kind: str, size: int) -> str:
    """Returns the kind that `"auto"` stands for at an image height.

    Args:
        kind: What `--augment` says.
        size: Height of the network's input.
    """
    if kind != "auto":
        return kind
    return "resized_crop" if size >= LARGE_IMAGE else "crop_flip"


def stored_size(size: int) -> int:
    """Returns the height at which pictures are kept for a network input of height `size`.

    Large pictures are kept an eighth larger, for random and central crops to choose from.
    """
    return size if size < LARGE_IMAGE else round(size * 8 / 7)


def augment(
    images: np.ndarray, kind: str, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Returns randomly changed images, for training.

    Args:
        images: uint8 array `(n, h, w, c)`.
        kind: A kind of `--augment`, not `"auto"`.
        size: `(height, width)` of the result.
        rng: A `numpy.random.Generator`; equal generators give equal images.
    """
    if kind == "none":
        return central_crop(images, size)
    if kind == "resized_crop":
        images = np.stack([_resized_crop(image, size, rng) for image in images])
    else:
        images = _shift(central_crop(images, size), rng)
    if kind != "crop":
        mirrored = rng.random(len(images)) < 0.5
        images[mirrored] = images[mirrored, :, ::-1]
    return images


def central_crop(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the middle of each image of a batch.

    Args:
        images: Array `(n, h, w, c)`.
        size: `(height, width)` of the result, at most `(h, w)`.
    """
    top = (images.shape[1] - size[0]) // 2
    left = (images.shape[2] - size[1]) // 2
    return images[:, top : top + size[0], left : left + size[1]]


def _shift(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shifts each image by up to an eighth of its size; black comes in at the border."""
    height, width = images.shape[1:3]
    down, right = max(1, height // 8), max(1, width // 8)
    padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    tops = rng.integers(0, 2 * down + 1, len(images))
    lefts = rng.integers(0, 2 * right + 1, len(images))
    return np.stack(
        [
            image[top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def _resized_crop(
    image: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Resizes a random 8-100 % of the area, of aspect 3/4 to 4/3, to the whole image."""
    from PIL import Image

    height, width, channels = image.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            break
    else:
        h, w = height, width
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    box = (int(left), int(top), int(left) + w, int(top) + h)
    picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture).reshape(*size, channels)
