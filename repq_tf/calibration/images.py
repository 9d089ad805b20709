"""Images that users pass, from whatever holds them, as float32 batches.

Of a model with several inputs a batch is a dict, with an array for the name of each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from repq_tf.arguments import fits, positive
from repq_tf.calibration.batches import Batch, Shapes, Stored, StoredInputs, images_of
from repq_tf.graphs import leaves, read_graph
from repq_tf.keras_api import Array, Shape, keras, ops

# Squares of larger values, summed up, leave float32.
_LARGEST = 1e9
Images: TypeAlias = Stored | StoredInputs
Lowest: TypeAlias = float | Mapping[str, float]


def read_images(
    data: Any,
    model: keras.Model,
    batch_size: int | Callable[[Shapes], int] | None = None,
    limit: int | None = None,
    name: str = "images",
) -> Iterator[Batch]:
    """Yields images as float32 arrays `(batch, ...)`, each read when it is asked for.

    Of a model with several inputs, a dict of arrays by the names of these.

    Args:
        data: an array of images; `(images, labels)`, a tuple as for `fit`; or an iterable of
            batches, arrays or tuples whose first item is the images: a list, a generator, a
            `tf.data.Dataset`, a Keras `PyDataset`, a PyTorch `DataLoader`. Of a model with
            several inputs, a dict or a list of arrays is in the place of an array of images.
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
    if limit is not None:
        positive(limit, "calibration_images")
    inputs, left = Inputs(model), limit
    for part in _parts(data, inputs, name, may_be_endless=limit is not None):
        found, chosen = inputs.read(part, name), None
        count = len(next(iter(found.values())))
        if left is not None:
            taken = min(left, count)
            if part is data and taken < count:
                chosen = np.arange(taken) * count // taken
            count, left = taken, left - taken
        shapes = {key: tuple(images.shape[1:]) for key, images in found.items()}
        size = batch_size(inputs.given(shapes)) if callable(batch_size) else batch_size or count
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            picked = rows if chosen is None else chosen[rows]
            yield inputs.given(
                {key: _batch(images, picked, name) for key, images in found.items()}
            )
        if left == 0:
            return


class Inputs:
    """The inputs of a model, for which data are read.

    Args:
        model: the model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._keys, self.several = {"": ""}, isinstance(model.input_shape, list | dict)
        self._shapes: dict[str, Shape] = {}
        if self.several:
            graph = read_graph(model)
            self._keys = graph.input_keys
            self._shapes = {name: graph.nodes[name].input_shape[1:] for name in self._keys}
        else:
            self._shapes[""] = tuple(model.input_shape[1:])

    def given(self, values: dict[str, Any]) -> Any:
        """Values of all inputs, or the one of the only input."""
        return values if self.several else values[""]

    def read(self, part: Any, name: str) -> dict[str, Any]:
        """The images of each input in a part of the data; their shapes are checked."""
        if not self.several:
            return {"": _images(part, self._shapes[""], name)}
        values = self.structure(part)
        if values is None:
            raise ValueError(
                f"{name} must be batches of arrays for each of the inputs "
                f"{list(self._keys.values())}, dicts or lists. Received: {_described(part)}"
            )
        found = {
            key: _images(values[key], self._shapes[key], f"{name} of input {given!r}")
            for key, given in self._keys.items()
        }
        counts = {self._keys[key]: len(images) for key, images in found.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{name} must be as many for each input. Received: {counts}")
        return found

    def structure(self, part: Any) -> dict[str, Any] | None:
        """The arrays of all inputs among a batch, `(inputs, labels)` or the inputs alone."""
        if isinstance(part, tuple) and part and isinstance(part[0], dict | list | tuple):
            part = part[0]
        if isinstance(part, dict) and all(key in part for key in self._keys.values()):
            part = [part[key] for key in self._keys.values()]
        if not isinstance(part, list | tuple):
            return None
        arrays = leaves(part)
        if len(arrays) != len(self._keys) or not all(map(_is_array, arrays)):
            return None
        return dict(zip(self._keys, arrays, strict=True))


def _described(part: Any) -> str:
    if isinstance(part, dict):
        return f"a dict with the keys {list(part)}"
    length = f" of {len(part)}" if isinstance(part, list | tuple) else ""
    return f"{type(part).__name__}{length}"


def store_images(
    data: Any,
    model: keras.Model,
    batch_size: int | Callable[[Shapes], int] | None,
    limit: int | None,
    name: str = "calibration data",
) -> tuple[Images, Lowest]:
    """Images that calibrate a model, read once.

    Args:
        data: as for `read_images`.
        model: likewise.
        batch_size: likewise.
        limit: likewise; a positive whole number, or None.
        name: what to call them in a message.

    Returns:
        Their `Stored` batches and the smallest value among them; of a model with several
        inputs, `StoredInputs` and the smallest value of each.

    Raises:
        ValueError: as `read_images`, or all values are equal.
    """
    stored: dict[str, Stored] = {}
    lowest: dict[str, float] = {}
    highest: dict[str, float] = {}
    for batch in read_images(data, model, batch_size, limit, name):
        for key, images in images_of(batch).items():
            stored.setdefault(key, Stored()).append(images)
            lowest[key] = min(lowest.get(key, np.inf), images.min())
            highest[key] = max(highest.get(key, -np.inf), images.max())
    for key, least in lowest.items():
        if least == highest[key]:
            which = f" of input {key!r}" if key else ""
            raise ValueError(
                f"{name}{which} must be images. Received: values that are all {least:g}"
            )
    if list(stored) == [""]:
        return stored[""], lowest[""]
    return StoredInputs(stored), lowest


def _parts(data: Any, inputs: Inputs, name: str, may_be_endless: bool) -> Iterator[Any]:
    """The batches of images, each an array or what holds one."""
    what = "an array of images or an iterable of batches"
    if inputs.several:
        what = "a dict or list of arrays, one for each input, or an iterable of batches"
        if isinstance(data, dict) or inputs.structure(data) is not None:
            yield data
            return
    elif isinstance(data, dict):
        raise ValueError(
            f"{name} must be {what}. Received: a dict; give the images alone, data[KEY], KEY "
            f"among {list(data)}"
        )
    elif _is_array(data) or _is_pair(data):
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
