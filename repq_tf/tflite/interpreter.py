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
    """A file with one input, ready to run.

    Args:
        source: the path of the file, or its bytes.
        threads: of the runtime.
        kernels: "default" (LiteRT's: XNNPACK where it has one) or "reference" (LiteRT's).
        keep: whether inner tensors are kept, which `tensor` then reads.

    Attributes:
        input_shape: of an image, with None for sizes that the file leaves open.

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
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = self._interpreter.get_output_details()
        sizes = self._input["shape_signature"][1:]
        self.input_shape: Shape = tuple(int(n) if n > 0 else None for n in sizes)
        self._allocated: Shape | None = None  # the input's shape that there is memory for

    @property
    def input_type(self) -> np.dtype[Any]:
        """The type of what the file takes."""
        return np.dtype(self._input["dtype"])

    @property
    def input_grid(self) -> tuple[float, int]:
        """Scale and zero point of what the file takes; the scale is 0 for plain numbers."""
        return self._input["quantization"]

    def output_grid(self, position: int = 0) -> tuple[float, int]:
        """Likewise, of what it gives."""
        return self._outputs[position]["quantization"]

    def output_shape(self, position: int = 0) -> Shape:
        """The shape of an output, as far as it is known."""
        return tuple(int(n) for n in self._outputs[position]["shape"])

    def allocate(self, shape: Shape) -> None:
        """Makes ready for inputs of a shape.

        Not before one is known: layers need not fit the size 1 that open sizes have in a file.
        """
        if shape != self._allocated:
            self._interpreter.resize_tensor_input(self._input["index"], shape)
            with quiet():  # LiteRT tells that it uses XNNPACK
                self._interpreter.allocate_tensors()
            self._allocated = shape

    def run(self, batch: Array) -> None:
        """Computes a batch, in the type that the file takes."""
        self.allocate(batch.shape)
        self._interpreter.set_tensor(self._input["index"], batch)
        self._interpreter.invoke()

    def output(self, position: int = 0) -> Array:
        """What the file gives of the last batch."""
        return self._interpreter.get_tensor(self._outputs[position]["index"])

    def tensor(self, index: int) -> Array:
        """A kept tensor of the last batch, by its number in the file."""
        return self._interpreter.get_tensor(index)

    def sizes(self, shape: Shape) -> dict[int, tuple[Shape, int]]:
        """`{number of a tensor: (its shape, bytes of a value)}` for inputs of a shape."""
        self.allocate(shape)
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
