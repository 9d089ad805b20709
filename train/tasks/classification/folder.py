"""Folders of images, one folder per class."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from repq_tf.files.pictures import SUFFIXES
from repq_tf.train.data.pictures import read_picture
from repq_tf.train.errors import UserError
from repq_tf.train.settings.checks import check_dataset_folder
from repq_tf.train.tasks.classification.arrays import ArrayImages
from repq_tf.train.tasks.classification.augment import stored_size

TEST_FOLDERS = ("test", "val", "validation")

# Pictures of more bytes than this are read again from their files in every epoch.
MEMORY_LIMIT = 4 * 2**30


class ImageFiles:
    """Pictures that are read when they are asked for: `files[indices]` is a uint8 array.

    Args:
        paths: The files.
        channels: 1 or 3.
        size: Height and width to resize to; `None` if all have the size `shape` already.
        shape: `(height, width)` of the pictures after resizing.

    Attributes:
        fault: The error about a picture that could not be read, if any. Backends that read in
            threads of their own raise something else in its place.
    """

    def __init__(
        self, paths: Sequence[str], channels: int, size: int | None, shape: tuple[int, int]
    ) -> None:
        self._paths = paths
        self._channels = channels
        self._size = size
        self.shape = (len(paths), *shape, channels)
        self.fault = None

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), *self.shape[1:]), "uint8")
        try:
            for k, index in enumerate(indices):
                out[k] = read_picture(self._paths[index], self._channels, self._size)
        except UserError as error:
            self.fault = error
            raise
        return out


def load_folder(
    path: str, image_size: int | None = None, skip_bad_images: bool = False
) -> ArrayImages:
    """Returns the images of a folder.

    Either `path` holds `train/` and one of `test/`, `val/`, `validation/`, each with one
    folder of images per class; or it holds the class folders itself, and every fifth image
    of each class, in an order that never changes, is for testing.

    Args:
        path: The folder.
        image_size: Height and width to resize to; by default the images' own, which must
            then be the same for all.
        skip_bad_images: Leave out files that are no pictures, which are then looked for in all
            files.

    Raises:
        UserError: If the folder is missing or empty, classes differ between the two parts,
            sizes differ and `image_size` is not given, or a file is no picture and shall
            not be left out.
    """
    path = os.path.abspath(os.path.expanduser(path))
    check_dataset_folder(path)
    names, *parts = _list_files(path)
    skipped = _unreadable([p for part in parts for p, _ in part]) if skip_bad_images else []
    train, test = ([(p, label) for p, label in part if p not in skipped] for part in parts)
    if not train or not test:
        raise UserError(f"{path} holds no readable images; skipped: {len(skipped)}.")
    channels, native = _inspect([p for p, _ in train + test], image_size)
    size = stored_size(image_size) if image_size else None
    stored = (size, size) if size else native
    parts = []
    for part in (train, test):
        files = ImageFiles([p for p, _ in part], channels, size, stored)
        labels = np.array([label for _, label in part])
        parts.append((files, labels))
    if sum(int(np.prod(files.shape)) for files, _ in parts) <= MEMORY_LIMIT:
        parts = [(files[np.arange(len(labels))], labels) for files, labels in parts]
    wanted = (image_size, image_size) if image_size else None
    return ArrayImages(f"folder:{path}", names, *parts, size=wanted, skipped=skipped)


def _list_files(path: str) -> Any:
    """Returns the class names and the `(file, label)` lists of the two parts."""
    train = os.path.join(path, "train")
    if not os.path.isdir(train):
        classes = _classes(path)
        return list(classes), *_split(classes)
    found = [name for name in TEST_FOLDERS if os.path.isdir(os.path.join(path, name))]
    if not found:
        raise UserError(
            f"{path} has a folder train but none of: {', '.join(TEST_FOLDERS)}."
            " Add one, or give the folder that holds the class folders."
        )
    parts = _classes(train), _classes(os.path.join(path, found[0]))
    if list(parts[0]) != list(parts[1]):
        odd = sorted(set(parts[0]) ^ set(parts[1]))
        raise UserError(
            f"train and {found[0]} of {path} must have the same class folders."
            f" Only one of them has: {', '.join(odd)}"
        )
    names = list(parts[0])
    return names, *(
        [(file, k) for k, name in enumerate(names) for file in part[name]] for part in parts
    )


def _classes(path: str) -> dict[str, list[str]]:
    """Returns class name -> files, both sorted; every class has at least one file."""
    classes = {}
    for entry in sorted(os.scandir(path), key=lambda e: e.name):
        if entry.is_dir() and not entry.name.startswith("."):
            files = sorted(_pictures(entry.path))
            if not files:
                raise UserError(
                    f"The class folder {entry.path} holds no images ({' '.join(SUFFIXES)})."
                )
            classes[entry.name] = files
    if len(classes) < 2:
        raise UserError(
            f"{path} must hold at least two class folders with images. Found: {len(classes)}"
        )
    return classes


def _pictures(path: str) -> Iterator[str]:
    """Yields the pictures of a class, also those in folders of its folder (Tiny ImageNet)."""
    for folder, _, names in os.walk(path):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                yield os.path.join(folder, name)


def _unreadable(paths: Sequence[str]) -> list[str]:
    """Returns those files that cannot be decoded, in their order."""

    def is_bad(path: str) -> bool:
        try:
            read_picture(path, 3)
        except UserError:
            return True
        return False

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [p for p, bad in zip(paths, threads.map(is_bad, paths), strict=True) if bad]


def _split(
    classes: Mapping[str, list[str]],
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Takes a fifth of each class, at least one image, for testing."""
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, (name, files) in enumerate(classes.items()):
        if len(files) < 2:
            raise UserError(
                f"The class {name} has one image; at least two are needed to keep one for"
                " testing."
            )
        order = np.random.default_rng([0, label]).permutation(len(files))
        count = max(1, round(0.2 * len(files)))
        chosen = set(order[:count].tolist())
        for k, file in enumerate(files):
            (test if k in chosen else train).append((file, label))
    return train, test


def _inspect(paths: Sequence[str], image_size: int | None) -> tuple[int, tuple[int, int]]:
    """Reads all headers: returns the channels, and the common `(height, width)` if any."""
    grey, first = True, ("", (0, 0))
    for path in paths:
        try:
            with Image.open(path) as picture:
                grey = grey and picture.mode in ("1", "L")
                size = (picture.height, picture.width)
        except (OSError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as an image: {error}") from error
        first = first if first[0] else (path, size)
        if size != first[1] and not image_size:
            raise UserError(
                "The images differ in size, so --image_size is needed:"
                f" {first[0]} is {first[1][0]}x{first[1][1]} and"
                f" {path} is {size[0]}x{size[1]}."
            )
    return 1 if grey else 3, first[1]
