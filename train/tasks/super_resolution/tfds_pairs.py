"""DIV2K of TensorFlow Datasets, whose low-resolution images are given."""

from typing import Any

from repq_tf.train.data.tfds import find_builder, prepare
from repq_tf.train.errors import UserError
from repq_tf.train.tasks.super_resolution.pair import Pair, make_pair


def load_div2k(
    dataset: str, scale: int, data_dir: str | None = None, test: bool = True
) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """Returns the 800 training pairs, and the 100 of validation as the test set.

    They are held in memory as uint8, 9 GB at scale 2.

    Args:
        dataset: `"div2k"`, whose low-resolution images are then bicubic, or another of its
            configurations, such as `"div2k/unknown_x2"`.
        scale: How many times larger images shall become.
        data_dir: Folder of prepared TFDS sets; by default TFDS's own.
        test: Whether the test images are wanted.

    Returns:
        `(train, tests)`, as in `pairs.Pairs`.

    Raises:
        UserError: If the set cannot be prepared, or is of another scale.
    """
    name = dataset if "/" in dataset else f"{dataset}/bicubic_x{scale}"
    builder = find_builder(name, data_dir)
    if not {"lr", "hr"} <= set(builder.info.features):
        raise UserError(f"--dataset={name} is no set of pairs: it has no features lr and hr.")
    prepare(builder, name)
    splits = ("train", "validation") if test else ("train",)
    parts = [_read(builder, split, scale) for split in splits]
    return parts[0], {"div2k": parts[1]} if test else {}


def _read(builder: Any, split: str, scale: int) -> list[Pair]:
    data = builder.as_dataset(split=split, shuffle_files=False)
    return [
        make_pair(f"{builder.name} {split} {k}", example["hr"], scale, example["lr"])
        for k, example in enumerate(data.as_numpy_iterator())
    ]
