"""A `.tflite` file in the interpreter, its tensors read one at a time."""

import contextlib
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from repq_tf.arguments import fits
from repq_tf.keras_api import Array, Shape
from repq_tf.parity.diagnosis import unequal_scales
from repq_tf.tflite import reading
from repq_tf.tflite.interpreter import Interpreter
from repq_tf.tflite.micro import MicroInterpreter
from repq_tf.tflite.pixels import pixels_of, takes_pixels

_THREADS = 2
_ARM = ("aarch64", "arm64")


def default_runtime() -> str:
    """That of LiteRT on this machine."""
    return "xnnpack_arm" if platform.machine().lower() in _ARM else "xnnpack"


def _check_machine(runtime: str) -> None:
    """Raises ValueError if this machine's processor is not the runtime's."""
    if runtime.startswith("xnnpack") and runtime != default_runtime():
        raise ValueError(
            f"runtime={runtime!r} runs on another processor. Received: a machine of "
            f"{platform.machine()}, where LiteRT is {default_runtime()!r}; "
            f"repq_tf.with_runtime(model, {runtime!r}) computes what it computes"
        )


def _interpreter(content: bytes, runtime: str, keep: bool) -> Any:
    if runtime == "tflm":
        return MicroInterpreter(content, keep)
    kernels = "reference" if runtime == "reference" else "default"
    return Interpreter(content, _THREADS, kernels, keep)


class File:
    """A file with two interpreters: the usual one, and one that keeps inner tensors.

    Args:
        path: a `pathlib.Path`.
        runtime: what runs it; see `repq_tf.arithmetic.runtimes`.

    Attributes:
        model: the parsed file.
        image_shape: of its first input.
        input_names: those of its inputs in its signature.
        indices: `{name of a layer: the number of its output}`.
        container: "int4" if it holds kernels of 4 bits, else "int8".

    Raises:
        ValueError: it is not a TFLite file, or the runtime is not here or cannot run it.
    """

    def __init__(self, path: Path, runtime: str) -> None:
        self.path, self.runtime = path, runtime
        _check_machine(runtime)
        content, self.model = reading.read(path)
        try:
            self.graph = self.model.subgraphs[0]
            tensors = self.graph.tensors
            self.indices = reading.indices_by_name(self.graph)
            self.container = "int4" if reading.has_int4(self.model) else "int8"
            self.quantization = [reading.scale_and_zero(tensor) for tensor in tensors]
            self.inputs = [int(k) for k in self.graph.inputs]
            self.outputs = [int(k) for k in self.graph.outputs]
            count = range(len(self.inputs))
            self._takes_pixels = [takes_pixels(self.model, k) for k in count]
            shapes = [reading.shape(tensors[k])[1:] for k in self.inputs]
            self.input_names = reading.signature_inputs(self.model) or [""] * len(shapes)
        except Exception as error:
            raise ValueError(f"{path} is not a whole TFLite file: {error}") from error
        self.image_shape, self._shapes = shapes[0], shapes
        self._constant = {
            k for k, t in enumerate(tensors) if reading.is_constant(self.model, t)
        }
        with self._refusal():
            self._keeping, self._usual = (
                _interpreter(content, runtime, keep) for keep in (True, False)
            )

    def is_float(self, name: str) -> bool:
        """Whether a layer's tensor holds floats."""
        return reading.type_name(self.graph.tensors[self.indices[name]]) in reading.FLOATS

    def _check(self, *shapes: Shape) -> None:
        """Raises ValueError for images of a shape that the file does not take."""
        for wanted, shape in zip(self._shapes, shapes, strict=True):
            if not fits(wanted, shape):
                raise ValueError(
                    f"{self.path} takes images of shape {wanted}. Received: {shape}"
                )

    def image_bytes(self, *shapes: Shape) -> tuple[int, int]:
        """Bytes that images of some shapes need: all tensors, and the largest one's size."""
        self._check(*shapes)
        batches = [(1, *shape) for shape in shapes]
        self._allocate(*batches)
        sizes = [
            (math.prod(size), width)
            for index, (size, width) in self._keeping.sizes(*batches).items()
            if index not in self._constant
        ]
        return sum(count * width for count, width in sizes), max(count for count, _ in sizes)

    def run(self, *inputs: tuple[Array, np.float32]) -> None:
        """Computes a batch.

        Args:
            *inputs: levels of each of the model's inputs, in the file's order, and the step of
                their grid.
        """
        self._allocate(*(integers.shape for integers, _ in inputs))
        values = [self._given(k, *levels) for k, levels in enumerate(inputs)]
        for interpreter in (self._usual, self._keeping):
            interpreter.run(*values)

    def _given(self, position: int, integers: Array, step: np.float32) -> Array:
        """What the file takes for levels of an input."""
        kind = self._usual.type_of_input(position)
        if self._takes_pixels[position]:
            return pixels_of(self.model, integers * step, True, position)
        if kind == np.float32:
            return (integers * step).astype(np.float32)
        return (integers + self.quantization[self.inputs[position]][1]).astype(kind)

    def _allocate(self, *shapes: Shape) -> None:
        """Makes both interpreters ready for inputs of some shapes."""
        with self._refusal(f"inputs of shape {', '.join(map(str, shapes))}: "):
            for interpreter in (self._usual, self._keeping):
                interpreter.allocate(*shapes)

    @contextlib.contextmanager
    def _refusal(self, what: str = "") -> Iterator[None]:
        """Says why the runtime refuses the file."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            causes = "; ".join(unequal_scales(self.model, self.graph.operators))
            reason = causes or what + str(error).strip().splitlines()[0]
            raise ValueError(f"{self.path} is refused by the runtime: {reason}") from error

    def tensor(self, index: int, step: np.float32) -> Array:
        """Levels, zero point removed, of an inner tensor; of a float one, by `step`."""
        return self._levels(self._keeping.tensor(index), index, step)

    def output(self, position: int, step: np.float32) -> Array:
        """Levels of an output of the model, as the caller gets it."""
        return self._levels(self._usual.output(position), self.outputs[position], step)

    def _levels(self, values: Array, index: int, step: np.float32) -> Array:
        if values.dtype.kind == "f":
            return np.rint(values / step).astype(np.int32)
        return values.astype(np.int32) - self.quantization[index][1]
