"""The ends of a file: in which types it takes and gives numbers."""

import dataclasses

import numpy as np

from repq_tf.keras_api import Array
from repq_tf.tflite.pixels import PIXELS
from repq_tf.tflite.program import Grid, Program, Tensor

_SHIFTED = np.arange(-128, 128)
_TYPES = {8: ("int8", "uint8", "float32"), 16: ("int16", "float32")}


def check_type(name: str, value: str | None, bits: int) -> str:
    """Returns the type of an end: the first that files of some bits can have, for None.

    Args:
        name: of the argument.
        value: "int8", "uint8", "int16", "float32" or None.
        bits: of the model's activations.

    Raises:
        ValueError: such a file cannot have it.
    """
    allowed = _TYPES[max(bits, 8)]
    value = allowed[0] if value is None else value
    if value not in allowed:
        also = " for activations of 16 bits" if bits == 16 else ""
        raise ValueError(f"{name} must be one of {allowed}{also}. Received: {value!r}")
    return value


@dataclasses.dataclass(frozen=True)
class Ends:
    """What a file takes and gives.

    Attributes:
        input_type: the type of what it takes.
        output_type: likewise, of what it gives.
        table: the integers of the stored input for each uint8 pixel value, int8
            `(256, channels)`; None for uint8 on the grid of the int8 input, which is
            `pixel - 128`.
    """

    input_type: str
    output_type: str
    table: Array | None = None

    def take(self, program: Program, inner: Tensor) -> Tensor:
        """Puts before a program's stored input what makes it of the file's; returns that."""
        if self.table is not None and (self.table != _SHIFTED[:, None]).any():
            return _look_up(program, inner, self.table)
        if self.input_type == inner.type:
            return inner
        twin = _twin(program, inner, self.input_type)
        program.add("QUANTIZE", (twin,), inner)
        return twin

    def give(self, program: Program, inner: Tensor) -> Tensor:
        """Puts behind a stored output what makes the file's of it; returns that."""
        if self.output_type == inner.type:
            return inner
        kind = "QUANTIZE" if self.output_type == "uint8" else "DEQUANTIZE"
        return program.add(kind, (inner,), _twin(program, inner, self.output_type))


def _look_up(program: Program, inner: Tensor, table: Array) -> Tensor:
    """Puts `GATHER(table, CAST(pixels))` before the input; channels may differ by an ADD.

    Table lookup is exact in every runtime, whatever the step and the normalisation are.
    """
    name = inner.name
    pixels = Tensor(program.name(f"{name}_pixels"), "uint8", inner.shape)
    index = Tensor(program.name(f"{name}_index"), "int32", inner.shape)
    program.add("CAST", (pixels,), index, inDataType="uint8", outDataType="int32")
    if (table == table[:, :1]).all():
        table = table[:, 0]
    else:
        offsets = np.arange(table.shape[1], dtype=np.int32) * PIXELS
        shifted = Tensor(program.name(f"{name}_shifted"), "int32", inner.shape)
        constant = program.constant(f"{name}_offsets", offsets)
        options = {"fusedActivationFunction": "NONE"}
        index, table = (
            program.add("ADD", (index, constant), shifted, **options),
            table.T.ravel(),
        )
    values = program.constant(f"{name}_table", np.ascontiguousarray(table), inner.grid)
    program.add("GATHER", (values, index), inner, axis=0)
    return pixels


def _twin(program: Program, tensor: Tensor, kind: str) -> Tensor:
    """A new tensor of the shape of another one and of another type."""
    grid = None
    if kind == "uint8":
        assert tensor.grid is not None  # it is stored
        grid = Grid(tensor.grid.scale, tensor.grid.zero_point + 128)
    return Tensor(program.name(f"{tensor.name}_{kind}"), kind, tensor.shape, grid)
