"""`.tflite` files in TensorFlow Lite Micro, as its Python package runs them."""

import importlib.util
import math
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Shape
from repq_tf.quiet import quiet
from repq_tf.tflite import reading

# What tensors begin at a multiple of, in bytes; and to how many an arena is told.
_ALIGNMENT, _GRAIN = 16, 1024
# What the runtime keeps beside tensors, at least; and beyond what no microcontroller has.
_LEAST, _MOST = 2**20, 2**30


def is_installed() -> bool:
    """Whether the package `tflite-micro` is."""
    return importlib.util.find_spec("tflite_micro") is not None


class MicroInterpreter:
    """A file, run image by image; else like `interpreter.Interpreter`.

    Args:
        content: the bytes of the file.
        keep: whether inner tensors are kept, which `tensor` then reads.

    Raises:
        ValueError: the package is not installed, or the runtime refuses the file.
    """

    def __init__(self, content: bytes, keep: bool = False) -> None:
        if not is_installed():
            raise ValueError(
                "TensorFlow Lite Micro is run by the package tflite-micro, which is not "
                "installed; pip install --pre tflite-micro"
            )
        graph = reading.load(content).subgraphs[0]
        self._inputs, self._outputs = (
            [int(k) for k in ends] for ends in (graph.inputs, graph.outputs)
        )
        self._read: dict[int, Any] = {}
        made = [int(k) for operator in graph.operators for k in operator.outputs]
        features = {k: graph.tensors[k] for k in (*self._inputs, *made)}
        self._shapes = {k: tuple(map(int, t.shape)) for k, t in features.items()}
        self._widths = {k: _dtype(tensor).itemsize for k, tensor in features.items()}
        self._types = {k: _dtype(tensor) for k, tensor in features.items()}
        room = _LEAST + 2 * len(content) + 2 * sum(map(_size, features.values()))
        self._interpreter = _open(content, room, keep)
        if self._interpreter is None:
            raise ValueError("TensorFlow Lite Micro has no kernel of an operator for its types")
        self._kept = made if keep else []

    def type_of_input(self, position: int) -> np.dtype[Any]:
        """The type of what the file takes at a place."""
        return self._types[self._inputs[position]]

    def allocate(self, *shapes: Shape) -> None:
        """Raises ValueError for a batch of images of another shape than the file's."""
        for index, shape in zip(self._inputs, shapes, strict=True):
            if tuple(shape[1:]) != self._shapes[index][1:]:
                raise ValueError(f"it has memory for images of {self._shapes[index][1:]}")

    def sizes(self, *shapes: Shape) -> dict[int, tuple[Shape, int]]:
        """`{number of a tensor: (its shape, bytes of a value)}` of an image."""
        self.allocate(*shapes)
        return {k: (found, self._widths[k]) for k, found in self._shapes.items()}

    def run(self, *batches: Array) -> None:
        """Computes a batch of each input, in the types that the file takes."""
        rows: list[dict[int, Array]] = []
        for images in zip(*batches, strict=True):
            for place, image in enumerate(images):
                self._interpreter.set_input(image[None], place)
            self._interpreter.invoke()
            row = {k: self._interpreter.GetTensor(k, 0)["tensor_data"] for k in self._kept}
            ends = enumerate(self._outputs)
            rows.append(row | {k: self._interpreter.get_output(place) for place, k in ends})
        self._read = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}

    def output(self, position: int = 0) -> Array:
        """What the file gives of the last batch."""
        return self._read[self._outputs[position]]

    def tensor(self, index: int) -> Array:
        """A kept tensor of the last batch, by its number in the file."""
        return self._read[index]


def arena_size(content: bytes, model: Any) -> str:
    """What to say of the arena that a file needs.

    Args:
        content: its bytes.
        model: the same, parsed.
    """
    least = _live(model)
    if not is_installed():
        return f"tensor arena: more than {least} bytes, which its features take"
    low, high = least, least + _LEAST
    while _open(content, high, False) is None:
        low, high = high, 2 * high
        if high > _MOST:
            return f"tensor arena: more than {_MOST} bytes"
    while high - low > _GRAIN:
        middle = (low + high) // 2
        if _open(content, middle, False) is None:
            low = middle
        else:
            high = middle
    size = -(-high // _GRAIN) * _GRAIN
    return f"tensor arena: {size} bytes, measured on a machine of 64 bits"


def _open(content: bytes, arena: int, keep: bool) -> Any:
    """The runtime's interpreter, or None if it refuses the file or the arena is too small."""
    from tflite_micro import runtime

    config = runtime.InterpreterConfig.kPreserveAllTensors
    options = {"intrepreter_config": config} if keep else {}
    with quiet(always=True):  # it tells in C what it refuses
        try:
            return runtime.Interpreter.from_bytes(content, arena_size=arena, **options)
        except RuntimeError:
            return None


def _live(model: Any) -> int:
    """The most bytes that features take at once, one after the other operator being run."""
    graph = model.subgraphs[0]
    last = {int(k): place for place, op in enumerate(graph.operators) for k in op.inputs}
    last |= {int(k): len(graph.operators) for k in graph.outputs}
    alive, most = set(map(int, graph.inputs)), 0
    for place, operator in enumerate(graph.operators):
        alive |= set(map(int, operator.outputs))
        most = max(most, sum(_size(graph.tensors[k]) for k in alive))
        alive = {k for k in alive if last.get(k, place) > place}
    return most


def _size(tensor: Any) -> int:
    """The bytes that a tensor takes, for one image."""
    width = _dtype(tensor).itemsize
    return -(-width * math.prod(tensor.shape) // _ALIGNMENT) * _ALIGNMENT


def _dtype(tensor: Any) -> np.dtype[Any]:
    return np.dtype(reading.type_name(tensor).lower())
