"""Batches of images, and tensors whose batches memory need not hold."""

import math
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from repq_tf.graphs import Node
from repq_tf.keras_api import Array, Shape, Tensor, ops

# Bytes of a tensor that stay in memory; more lie in a temporary file.
_IN_MEMORY = 2**23
# Images of a model's input, or those of each by the names of several inputs; likewise shapes.
Batch: TypeAlias = Array | dict[str, Array]
Shapes: TypeAlias = Shape | Mapping[str, Shape]


def images_of(batch: Batch) -> dict[str, Array]:
    """The images of each input of a batch; the only one is called ""."""
    return batch if isinstance(batch, dict) else {"": batch}


def images_in(batch: Batch) -> int:
    """The number of images in a batch."""
    return len(next(iter(images_of(batch).values())))


def input_of(batch: Batch, node: Node) -> Tensor:
    """What a batch gives an input of the model."""
    return ops.convert_to_tensor(batch[node.name] if isinstance(batch, dict) else batch)


class Batches:
    """One tensor's values for all batches; `batches[k]` are those of batch k."""

    def __getitem__(self, k: int) -> Any:
        raise NotImplementedError


class Stored(Batches):
    """A tensor's batches in a temporary file, which memory need not hold.

    Args:
        dtype: of what is stored.
        step: what it is multiplied by when it is read; None for nothing.
    """

    def __init__(self, dtype: Any = "float32", step: Array | None = None) -> None:
        self._dtype, self._step = np.dtype(dtype), step
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)
        weakref.finalize(self, self._file.close)
        self._places: list[tuple[int, tuple[int, ...]]] = []

    def append(self, batch: Array) -> None:
        """Adds a batch."""
        values = np.ascontiguousarray(batch, self._dtype)
        self._file.seek(0, 2)
        self._places.append((self._file.tell(), values.shape))
        self._file.write(values.data)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def images(self) -> int:
        """The number of images in all batches."""
        return sum(shape[0] for _, shape in self._places)

    @property
    def size(self) -> int:
        """The number of values in all batches."""
        return sum(math.prod(shape) for _, shape in self._places)

    def of(self, node: Node) -> "Stored":
        """The batches of a model's only input."""
        return self

    def __getitem__(self, k: int) -> Array:
        start, shape = self._places[k]
        self._file.seek(start)
        content = self._file.read(self._dtype.itemsize * int(np.prod(shape)))
        values = np.frombuffer(content, self._dtype).reshape(shape)
        return values if self._step is None else np.multiply(values, self._step, dtype="f4")


class StoredInputs:
    """The batches of a model with several inputs; `batches[k]` is a dict of arrays.

    Args:
        inputs: the `Stored` batches of each, by its name.
    """

    def __init__(self, inputs: Mapping[str, Stored]) -> None:
        self._inputs = dict(inputs)
        self._first = next(iter(self._inputs.values()))

    def __len__(self) -> int:
        return len(self._first)

    @property
    def images(self) -> int:
        """The number of images in all batches."""
        return self._first.images

    @property
    def size(self) -> int:
        """The number of values in all batches of all inputs."""
        return sum(stored.size for stored in self._inputs.values())

    def __getitem__(self, k: int) -> dict[str, Array]:
        return {name: stored[k] for name, stored in self._inputs.items()}

    def of(self, node: Node) -> Stored:
        """The `Stored` batches of an input."""
        return self._inputs[node.name]
