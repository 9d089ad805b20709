"""Image classification sets of TensorFlow Datasets."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.keras_api import Tensor
from repq_tf.train.data.pictures import resize_all
from repq_tf.train.data.tfds import find_builder, prepare
from repq_tf.train.errors import UserError
from repq_tf.train.tasks.classification.arrays import ArrayImages
from repq_tf.train.tasks.classification.augment import stored_size
from repq_tf.train.tasks.classification.images import Images
from repq_tf.train.tasks.classification.tfds_reading import Examples
from repq_tf.train.tasks.classification.tfds_stream import StreamedImages

TEST_SPLITS = ("test", "validation")

# Sets of equally large images below this many bytes are read into memory.
MEMORY_LIMIT = 4 * 2**30
_DEFAULT_SIZE = 224


def load_tfds(
    name: str,
    data_dir: str | None = None,
    image_size: int | None = None,
    cache: bool = False,
    skip_bad_images: bool = False,
) -> Images:
    """Returns the images of a TFDS set, which is downloaded and prepared if need be.

    Small sets of equally large images become arrays in memory; others are streamed.

    Args:
        name: As in `tfds.load`, with a configuration or version if wanted.
        data_dir: Folder of the prepared sets; by default TFDS's own.
        image_size: Height and width to resize to; by default the images' own, or 224 where
            they differ in size.
        cache: Keep the compressed images of streamed sets in memory.
        skip_bad_images: Leave out images that cannot be decoded.

    Raises:
        UserError: If there is no such set, it cannot be prepared, or is not a set of images
            with one label each, or a file or an image of it is damaged.
    """
    builder = find_builder(name, data_dir)
    image, label = _features(builder.info)
    prepare(builder, name)
    splits = _splits(builder)
    in_memory = _fit_in_memory(image.shape, builder.info, splits, image_size)
    parts = [Examples(builder, split, cache and not in_memory) for split in splits]
    if skip_bad_images:
        for part in parts:
            part.skip_bad_images()
    if not in_memory:
        return StreamedImages(builder.info, *parts, image_size or _DEFAULT_SIZE)
    skipped = [name for part in parts for name in part.skipped]
    wanted = (image_size, image_size) if image_size else None
    arrays = [_read(part, image_size) for part in parts]
    return ArrayImages(name, label.names, *arrays, size=wanted, skipped=skipped)


def _fit_in_memory(
    shape: Sequence[Any], info: Any, splits: Sequence[str], image_size: int | None
) -> bool:
    """Says whether a set consists of equally large images, and few enough."""
    if None in shape:
        return False
    count = sum(info.splits[split].num_examples for split in splits)
    pixels = stored_size(image_size) ** 2 if image_size else shape[0] * shape[1]
    return count * pixels * shape[2] <= MEMORY_LIMIT


def _features(info: Any) -> tuple[Any, Any]:
    """Returns the image and the label feature."""
    import tensorflow_datasets as tfds

    features = dict(info.features.items()) if hasattr(info.features, "items") else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        problem = "it has no feature 'image'"
    elif not isinstance(label, tfds.features.ClassLabel):
        problem = "it has no class feature 'label'"
    elif np.dtype(image.np_dtype) != np.uint8 or image.shape[-1] not in (1, 3):
        problem = f"its images are {image}, not 8-bit grey or colour"
    else:
        return image, label
    raise UserError(
        f"--dataset={info.full_name} is not a set of images with one label each: {problem}."
        f" Its features: {', '.join(features)}"
    )


def _splits(builder: Any) -> tuple[str, str]:
    """Returns the names of the training and the test split."""
    info = builder.info
    filled = [name for name, split in info.splits.items() if split.num_examples]
    if "train" not in filled:
        raise UserError(
            f"--dataset={info.full_name} has no training images."
            f" Its splits: {', '.join(info.splits) or 'none'}"
        )
    for name in TEST_SPLITS:
        if name in filled and _is_labelled(builder, name):
            return "train", name
    return "train[:80%]", "train[80%:]"


def _is_labelled(builder: Any, split: str) -> bool:
    """Whether a split says its labels: those of contests (ImageNet's "test") are all -1."""
    first = Examples(builder, f"{split}[:1]")
    with first.reading():
        return all(example["label"] >= 0 for example in first.dataset().as_numpy_iterator())


def _read(examples: Examples, image_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images of a split as `(images, labels)`."""
    import tensorflow as tf

    def decode(example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return examples.decode(example["image"]), example["label"]

    with examples.reading():
        data = examples.dataset().map(decode, tf.data.AUTOTUNE, deterministic=True)
        batches = list(data.batch(1024).as_numpy_iterator())
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    if image_size:
        images = resize_all(images, stored_size(image_size))
    return images, labels
