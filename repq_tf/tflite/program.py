"""What a file computes, as plain data: operators on tensors of integers."""

import dataclasses
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Shape


@dataclasses.dataclass(frozen=True)
class Grid:
    """What the integers of a stored tensor stand for: `scale * (integer - zero_point)`.

    Attributes:
        scale: a float32 number, or one for each index of `axis`, `(channels,)`.
        zero_point: the integer that stands for 0.
        axis: of the scales.
    """

    scale: Any
    zero_point: int = 0
    axis: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a program.

    Attributes:
        name: in the file; no two of a program are equal.
        type: "int8", "uint8", "int16", "int32", "int64", "float32", or "int4": integers from
            -8 to 7 that are stored two a byte.
        shape: with None for sizes that are open.
        grid: of what it stores; None for plain numbers.
        values: of a constant, in its shape.
    """

    name: str
    type: str
    shape: Shape
    grid: Grid | None = None
    values: Array | None = None


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operator applied to tensors.

    Attributes:
        kind: the operator's name in the file format, such as "CONV_2D".
        inputs: the tensors that it reads.
        outputs: those that it makes, mostly one.
        options: by their names in the file format's schema.
    """

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    options: dict[str, Any]


class Program:
    """Operations in the order in which they run.

    Attributes:
        operations: the `Operation`s.
        inputs: `{name in the signature: Tensor}`.
        outputs: likewise.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._names: set[str] = set()
        self._kept: set[str] = set()
        self._made: dict[Any, Tensor] = {}
        self._constants: dict[Any, Tensor] = {}

    def name(self, wanted: str) -> str:
        """A name that no tensor has yet, the wanted one if it is free."""
        found, number = wanted, 0
        while found in self._names:
            number += 1
            found = f"{wanted}_{number}"
        self._names.add(found)
        return found

    def reserve(self, names: set[str]) -> None:
        """Keeps names, which `name` does not give then, for tensors that bear each."""
        self.keep(names)
        self._names |= names

    def keep(self, names: set[str]) -> None:
        """Has tensors of these names made though others be equal."""
        self._kept |= names

    def constant(self, name: str, values: Array, grid: Grid | None = None) -> Tensor:
        """A tensor with values, in their type; plain numbers that are equal share one."""
        kind = values.dtype.name
        if grid is not None:
            return Tensor(self.name(name), kind, values.shape, grid, values)
        key = kind, values.shape, values.tobytes()
        if key not in self._constants:
            self._constants[key] = Tensor(self.name(name), kind, values.shape, None, values)
        return self._constants[key]

    def add(
        self, kind: str, inputs: tuple[Tensor, ...], *outputs: Tensor, **options: Any
    ) -> Tensor:
        """Adds an operation; returns its first output."""
        self.operations.append(Operation(kind, inputs, outputs, options))
        return outputs[0]

    def add_once(
        self, kind: str, inputs: tuple[Tensor, ...], output: Tensor, **options: Any
    ) -> Tensor:
        """Adds an operation, or returns what an equal one of the same tensors makes already.

        A tensor whose name is to be kept is made in any case.
        """
        grid = output.grid and (output.grid.scale, output.grid.zero_point, output.grid.axis)
        what = (kind, tuple(map(id, inputs)), options, output.type, output.shape, grid)
        if output.name in self._kept:
            return self.add(kind, inputs, output, **options)
        if repr(what) not in self._made:
            self._made[repr(what)] = self.add(kind, inputs, output, **options)
        return self._made[repr(what)]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, each once, in the order in which they are met."""
        ends = (*self.inputs.values(), *self.outputs.values())
        met = [t for op in self.operations for t in (*op.inputs, *op.outputs)]
        return list({id(t): t for t in (*self.inputs.values(), *met, *ends)}.values())


def whole(values: Any) -> Array:
    """An int32 array, as operators take sizes, axes and paddings."""
    return np.asarray(values, np.int32)
