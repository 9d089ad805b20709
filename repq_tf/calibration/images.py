"""Images that users pass, from whatever holds them, as float32 batches."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from repq_tf.arguments import fits, positive
from repq_tf.calibration.execution import Stored
from repq_tf.keras_api import Array, Shape, keras, ops

# Squares of larger values, summed up, leave float32.
_LARGEST = 1e9


def read_images(
    data: Any,
    model: keras.Model,
    batch_size: int | Callable[[Shape], int] | None = None,
    limit: int | None = None,
    name: str = "images",
) -> Iterator[Array]:
    """Yields images as float32 arrays `(batch, ...)`, each read when it is asked for.

    Args:
        data: an array of images; `(images, labels)`, a tuple as for `fit`; or an iterable of
            batches, arrays or tuples whose first item is the images: a list, a generator, a
            `tf.data.Dataset`, a Keras `PyDataset`, a PyTorch `DataLoader`.
        model: the model that will get them; shapes are checked.
        batch_size: the most images in a batch, a number or a function of an image's shape;
            None leaves batches as they are.
        limit: how many images to read at most: of an array as many at equal distances, of
            an iterable the first ones. None reads all.
        name: what to call the images in a message.

    Raises:
        ValueError: the data are no images of the model's shape, or not finite; or endless,
            without a limit.
    """
    if isinstance(model.input_shape, list | dict):
        raise ValueError(f"{name}: model {model.name!r} must have one input")
    if limit is not None:
        positive(limit, "calibration_images")
    expected, left = tuple(model.input_shape[1:]), limit
    for part in _parts(data, name, may_be_endless=limit is not None):
        images, chosen = _images(part, expected, name), None
        count = len(images)
        if left is not None:
            taken = min(left, count)
            if part is data and taken < count:
                chosen = np.arange(taken) * count // taken
            count, left = taken, left - taken
        shape = tuple(images.shape[1:])
        size = batch_size(shape) if callable(batch_size) else batch_size or count
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            yield _batch(images, rows if chosen is None else chosen[rows], name)
        if left == 0:
            return


def store_images(
    data: Any,
    model: keras.Model,
    batch_size: int | Callable[[Shape], int] | None,
    limit: int | None,
    name: str = "calibration data",
) -> tuple[Stored, float]:
    """Images that calibrate a model, read once.

    Args:
        data: as for `read_images`.
        model: likewise.
        batch_size: likewise.
        limit: likewise; a positive whole number, or None.
        name: what to call them in a message.

    Returns:
        Their `Stored` batches and the smallest value among them.

    Raises:
        ValueError: as `read_images`, or all values are equal.
    """
    stored, lowest, highest = Stored(), np.inf, -np.inf
    for batch in read_images(data, model, batch_size, limit, name):
        stored.append(batch)
        lowest, highest = min(lowest, batch.min()), max(highest, batch.max())
    if lowest == highest:
        raise ValueError(f"{name} must be images. Received: values that are all {lowest:g}")
    return stored, lowest


def _parts(data: Any, name: str, may_be_endless: bool) -> Iterator[Any]:
    """The batches of images, each an array or what holds one."""
    what = "an array of images or an iterable of batches"
    if isinstance(data, dict):
        raise ValueError(
            f"{name} must be {what}. Received: a dict; give the images alone, data[KEY], KEY "
            f"among {list(data)}"
        )
    if _is_array(data) or _is_pair(data):
        yield data
        return
    if data is None or isinstance(data, str | bytes) or not _is_iterable(data):
        raise ValueError(f"{name} must be {what}. Received: {data!r}")
    if not may_be_endless and _is_endless(data):
        raise ValueError(f"{name} must end. Received: a dataset that repeats; add .take(n)")
    found = False
    for part in _items(data):
        found = True
        yield part
    if not found:
        raise ValueError(f"{name} must not be empty")


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "__getitem__")


def _is_pair(data: Any) -> bool:
    """Whether data are `(images, labels)` or `(images, labels, weights)`."""
    return isinstance(data, tuple) and len(data) in (2, 3) and _is_array(data[0])


def _is_iterable(data: Any) -> bool:
    return hasattr(data, "__iter__") or isinstance(data, keras.utils.Sequence)


def _items(data: Any) -> Iterable[Any]:
    """The items of an iterable; Keras's own datasets do not end by themselves."""
    if isinstance(data, keras.utils.Sequence):
        try:
            count = len(data)
        except TypeError as error:
            raise ValueError(f"{type(data).__name__} must have a length, __len__") from error
        return (data[index] for index in range(count))
    return data


def _is_endless(data: Any) -> bool:
    cardinality = getattr(data, "cardinality", None)
    return callable(cardinality) and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _images(part: Any, expected: Shape, name: str) -> Any:
    """The images of a part, an array whose shape is checked."""
    if isinstance(part, dict):
        raise ValueError(
            f"{name} must be batches of images. Received: a dict with the keys {list(part)}; "
            "take the images out, dataset.map(lambda item: item[KEY])"
        )
    images = part[0] if isinstance(part, tuple | list) and len(part) else part
    if type(images).__module__.split(".")[0] == "PIL":
        raise ValueError(
            f"{name} must be arrays of images. Received: pictures of PIL; stack them, "
            "np.stack([np.asarray(picture) for picture in pictures])"
        )
    if not _is_array(images) or not hasattr(images, "__len__"):  # ragged tensors have none
        raise ValueError(
            f"{name} must be batches of images of shape {expected}, arrays. Received: "
            f"{type(images).__name__}"
        )
    shape = tuple(images.shape)
    if len(shape) == len(expected) and fits(expected, shape):
        raise ValueError(
            f"{name} must be batches of images. Received: a single image of shape {shape}; "
            "give images[None] of an array, dataset.batch(32), or np.stack(images) of a list"
        )
    if not fits((None, *expected), shape):
        raise ValueError(
            f"{name} must be batches of images of shape {expected}. Received: an array of "
            f"shape {shape}"
        )
    if 0 in shape:
        raise ValueError(f"{name} must not be empty. Received: an array of shape {shape}")
    return images


def _batch(images: Any, rows: slice | Array, name: str) -> Array:
    """Some of the images as a float32 array."""
    if isinstance(rows, slice):
        batch = ops.convert_to_numpy(images[rows])
    else:  # one by one, which all kinds of arrays know
        batch = np.stack([ops.convert_to_numpy(images[int(row)]) for row in rows])
    if np.asarray(batch).dtype.kind not in "biufV":  # V: bfloat16, which NumPy does not know
        raise ValueError(f"{name} must be real numbers. Received: {batch.dtype}")
    batch = np.asarray(batch, np.float32)
    largest = np.abs(batch).max()
    if not np.isfinite(largest):
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    if largest > _LARGEST:
        raise ValueError(f"{name} must be images. Received: values up to {largest:g}")
    return batch
