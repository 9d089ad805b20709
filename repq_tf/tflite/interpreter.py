"""`.tflite` files, run by LiteRT's interpreter."""

import os
import time
import warnings
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Shape
from repq_tf.quiet import quiet
from repq_tf.tflite import reading

# LiteRT's operators, by which of its kernels run them.
_RESOLVERS = {"default": "AUTO", "reference": "BUILTIN_REF"}


class Interpreter:
    """A file, ready to run.

    Args:
        source: the path of the file, or its bytes.
        threads: of the runtime.
        kernels: "default" (LiteRT's: XNNPACK where it has one) or "reference" (LiteRT's).
        keep: whether inner tensors are kept, which `tensor` then reads.

    Attributes:
        input_shape: of an image of the first input, with None for sizes that the file leaves
            open.

    Raises:
        ValueError: it is no TFLite file, or the runtime refuses it.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes,
        threads: int = 1,
        kernels: str = "default",
        keep: bool = False,
    ) -> None:
        from ai_edge_litert import interpreter as litert

        content = reading.read(source)[0] if not isinstance(source, bytes) else source
        resolver = getattr(litert.OpResolverType, _RESOLVERS[kernels])
        with warnings.catch_warnings():
            # It warns that keeping tensors takes memory.
            warnings.simplefilter("ignore", UserWarning)
            self._interpreter = litert.Interpreter(
                model_content=content,
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=keep,
            )
        self._inputs = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        sizes = self._inputs[0]["shape_signature"][1:]
        self.input_shape: Shape = tuple(int(n) if n > 0 else None for n in sizes)
        # The inputs' shapes that there is memory for.
        self._allocated: tuple[Shape, ...] | None = None

    @property
    def input_type(self) -> np.dtype[Any]:
        """The type of what the file takes first."""
        return self.type_of_input(0)

    def type_of_input(self, position: int) -> np.dtype[Any]:
        """The type of what the file takes at a place."""
        return np.dtype(self._inputs[position]["dtype"])

    @property
    def input_grid(self) -> tuple[float, int]:
        """Scale and zero point of what the file takes; the scale is 0 for plain numbers."""
        return self._inputs[0]["quantization"]

    def output_grid(self, position: int = 0) -> tuple[float, int]:
        """Likewise, of what it gives."""
        return self._outputs[position]["quantization"]

    def output_shape(self, position: int = 0) -> Shape:
        """The shape of an output, as far as it is known."""
        return tuple(int(n) for n in self._outputs[position]["shape"])

    def allocate(self, *shapes: Shape) -> None:
        """Makes ready for inputs of some shapes.

        Not before one is known: layers need not fit the size 1 that open sizes have in a file.
        """
        if shapes != self._allocated:
            for detail, shape in zip(self._inputs, shapes, strict=True):
                self._interpreter.resize_tensor_input(detail["index"], shape)
            with quiet():  # LiteRT tells that it uses XNNPACK
                self._interpreter.allocate_tensors()
            self._allocated = shapes

    def run(self, *batches: Array) -> None:
        """Computes a batch of each input, in the types that the file takes."""
        self.allocate(*(batch.shape for batch in batches))
        for detail, batch in zip(self._inputs, batches, strict=True):
            self._interpreter.set_tensor(detail["index"], batch)
        self._interpreter.invoke()

    def output(self, position: int = 0) -> Array:
        """What the file gives of the last batch."""
        return self._interpreter.get_tensor(self._outputs[position]["index"])

    def tensor(self, index: int) -> Array:
        """A kept tensor of the last batch, by its number in the file."""
        return self._interpreter.get_tensor(index)

    def sizes(self, *shapes: Shape) -> dict[int, tuple[Shape, int]]:
        """`{number of a tensor: (its shape, bytes of a value)}` for inputs of some shapes."""
        self.allocate(*shapes)
        details = self._interpreter.get_tensor_details()
        return {
            detail["index"]: (
                tuple(map(int, detail["shape"])),
                np.dtype(detail["dtype"]).itemsize,
            )
            for detail in details
        }

    def seconds(self) -> float:
        """The time of one run on the batch before."""
        begin = time.perf_counter()
        self._interpreter.invoke()
        return time.perf_counter() - begin
