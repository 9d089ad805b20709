"""Photographs for super resolution: large images and the small ones made of them."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from repq_tf.files.pictures import SUFFIXES
from repq_tf.train.data.pictures import read_picture
from repq_tf.train.errors import UserError
from repq_tf.train.settings.checks import (
    check_dataset,
    check_dataset_folder,
    check_test_set,
)
from repq_tf.train.tasks.super_resolution.pair import Pair, make_pair
from repq_tf.train.tasks.super_resolution.tfds_pairs import load_div2k

# Of a folder without test sets, one image in so many is for testing.
_HELD_OUT = 10

# Names of folders of small images: LR, LR_x2, DIV2K_train_LR_bicubic.
_SMALL = re.compile("(^|_)LR")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a network is trained on and tested on.

    Attributes:
        train: List of `Pair`.
        tests: Name of a test set -> list of `Pair`.
    """

    train: list[Pair]
    tests: dict[str, list[Pair]]


def load_pairs(
    dataset: str,
    scale: int,
    test_sets: Mapping[str, str] | None = None,
    data_dir: str | None = None,
) -> Pairs:
    """Returns the images that `--dataset` and `--test_sets` name.

    Args:
        dataset: `"photographs"`, `"folder:PATH"` or `"div2k"`.
        scale: How many times larger images shall become.
        test_sets: Name -> folder of the test images; by default those of the data set.
        data_dir: Folder of prepared TFDS sets.

    Raises:
        UserError: If there are no such images, one is both trained on and tested on, or
            `data_dir` is given without a TFDS name.
    """
    check_dataset(dataset, "super_resolution", data_dir)
    kind = dataset.split("/")[0].split(":")[0]
    tests = {}
    for name, path in (test_sets or {}).items():
        check_test_set(name, path)
        tests[name] = read_pairs(path, scale)
    if kind == "photographs":
        train, own = _photographs(scale)
    elif kind == "folder":
        train, own = _folder(dataset.removeprefix("folder:"), scale, hold_out=not tests)
    else:
        train, own = load_div2k(dataset, scale, data_dir, test=not tests)
    tests = tests or own
    _check_separate(train, tests)
    return Pairs(train, tests)


def _check_separate(train: Sequence[Pair], tests: Mapping[str, Sequence[Pair]]) -> None:
    """Refuses files, by whatever path, that are trained on and tested on."""
    trained = {os.path.realpath(pair.file) for pair in train if pair.file}
    for name, pairs in tests.items():
        for pair in pairs:
            if pair.file and os.path.realpath(pair.file) in trained:
                raise UserError(
                    f"{pair.file} of the test set {name} is a training image too; --dataset"
                    " and --test_sets must have no file in common."
                )


def _photographs(scale: int) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """Scikit-learn's two photographs: one to train on, one to test on."""
    from sklearn.datasets import load_sample_image

    china, flower = (
        make_pair(name, load_sample_image(f"{name}.jpg"), scale) for name in ("china", "flower")
    )
    return [china], {"flower": [flower]}


def _folder(path: str, scale: int, hold_out: bool) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """A folder's pairs, of which every tenth is held out if need be."""
    pairs = read_pairs(path, scale)
    if not hold_out:
        return pairs, {}
    if len(pairs) < 2:
        raise UserError(
            f"{path} holds one image; at least two are needed to keep one for testing, or give"
            " --test_sets=NAME:PATH."
        )
    tests = pairs[_HELD_OUT // 2 :: _HELD_OUT] or pairs[-1:]
    held = {pair.name for pair in tests}
    return [pair for pair in pairs if pair.name not in held], {"held_out": tests}


def read_pairs(path: str, scale: int) -> list[Pair]:
    """Returns the pairs of a folder, sorted by name.

    Either all pictures in the folder, at any depth, are photographs, except those in folders of
    small images, such as `LR` and `DIV2K_train_LR_bicubic`; or it holds `HR` or `HR_x2`,
    `HR_x3`, ... and, if the small images are given, `LR_x2`, ...: pictures of one name belong
    together. A photograph that `HR_x3` lacks may lie in the others.

    Args:
        path: The folder.
        scale: How many times smaller the low-resolution images are.

    Raises:
        UserError: If there are no images, one cannot be read, or small ones are given but not
            for each photograph.
    """
    path = os.path.abspath(os.path.expanduser(path))
    check_dataset_folder(path)
    low = _pictures(os.path.join(path, f"LR_x{scale}"))
    high: dict[str, str] = {}
    for name in sorted(_high_folders(path), key=lambda n: n != f"HR_x{scale}"):
        high = {**_pictures(os.path.join(path, name)), **high}
    high = high or _pictures(path)
    if not high:
        raise UserError(
            f"{path} holds no images ({' '.join(SUFFIXES)}) outside folders of small ones (LR)."
        )
    lonely = sorted(set(low) - set(high))
    if lonely:
        raise UserError(
            f"{low[lonely[0]]} has no photograph of its name among the HR folders of {path}."
        )
    without = sorted(set(high) - set(low)) if low else ()
    if without:
        raise UserError(
            f"{high[without[0]]} has no small image of its name in {path}/LR_x{scale}; they"
            " must be given for all photographs or for none."
        )
    return [_read_pair(name, scale, high[name], low.get(name)) for name in sorted(high)]


def _read_pair(name: str, scale: int, high: str, low: str | None) -> Pair:
    small = read_picture(low, 3) if low else None
    pair = make_pair(high, read_picture(high, 3), scale, small)
    return dataclasses.replace(pair, name=name, file=high)


def _high_folders(path: str) -> list[str]:
    return [
        entry.name
        for entry in sorted(os.scandir(path), key=lambda e: e.name)
        if entry.is_dir() and (entry.name == "HR" or entry.name.startswith("HR_x"))
    ]


def _pictures(path: str) -> dict[str, str]:
    """Returns name without suffix, relative to the folder -> file; not below `_SMALL`."""
    files = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not _SMALL.search(name)]
        files += [os.path.join(folder, name) for name in names]
    found: dict[str, str] = {}
    for file in sorted(files):
        if not file.lower().endswith(SUFFIXES):
            continue
        name = os.path.splitext(os.path.relpath(file, path))[0]
        if name in found:
            raise UserError(
                "Photographs are told apart by their names without the suffix. Received:"
                f" {found[name]} and {file}"
            )
        found[name] = file
    return found
