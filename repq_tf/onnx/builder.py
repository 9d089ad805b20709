"""The nodes of an ONNX graph.

Every stored tensor is a QuantizeLinear and a DequantizeLinear with its grid, and operators
stand between them: engines find such patterns and compute them in integers. Features are uint8,
whose zero points lie 128 above those of int8, and images have their channels first inside.
Where saturation is no clamp, the integers are clamped: a Clip of floats between an operator and
its QuantizeLinear would keep engines from the pattern.
"""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array
from repq_tf.tflite.program import Grid, Operation, Program, Tensor

_TO_UNSIGNED = 128
# Images of Keras to images with their channels first, and back.
INSIDE, OUTSIDE = (0, 3, 1, 2), (0, 2, 3, 1)
# Behind the name of a layer's tensor: what is not rounded yet.
EXACT = "/exact"


class Builder:
    """Makes the nodes of an ONNX graph.

    Args:
        program: a `Program` of int8 features.

    Attributes:
        nodes: the `onnx.NodeProto`s so far.
        constants: `{name: onnx.TensorProto}`.
    """

    def __init__(self, program: Program) -> None:
        import onnx

        self._onnx, self._program = onnx, program
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._real: set[str] = set()
        self._counted: dict[int, str] = {}
        # Tensors that saturate at their lowest level, and what they become by it.
        self._clamped = {
            id(item.inputs[0]): item.outputs[0]
            for item in program.operations
            if _moves_levels(item) and len(_readers(program, item.inputs[0])) == 1
        }

    def is_done(self, operation: Operation) -> bool:
        """Whether its input's operator has made its output already."""
        return id(operation.inputs[0]) in self._clamped

    def take(self, key: str, tensor: Tensor, lowest: int) -> None:
        """Quantizes an input.

        Args:
            key: what it is called.
            tensor: what is stored of it.
            lowest: the least level of its grid.
        """
        x = key
        if len(tensor.shape) == 4:
            x = self.node("Transpose", [x], f"{tensor.name}/moved", perm=INSIDE)
        assert tensor.grid is not None  # it is stored
        self._store(tensor, x, tensor.grid.zero_point + lowest)

    def give(self, key: str, tensor: Tensor) -> None:
        """Makes an output, called `key`."""
        order: dict[str, Any] = {"perm": OUTSIDE} if len(tensor.shape) == 4 else {}
        self.node("Transpose" if order else "Identity", [self.real(tensor)], key, **order)

    def node(
        self,
        kind: str,
        inputs: list[str],
        output: str,
        layer: str | None = None,
        **options: Any,
    ) -> str:
        """Adds a node; returns its output's name. That of a layer's node is the layer's."""
        ends = self._program.outputs
        name = f"{output}/given" if output in ends else output.removesuffix(EXACT)
        name = name if layer is None else layer
        made = self._onnx.helper.make_node(kind, inputs, [output], name, **options)
        self.nodes.append(made)
        return output

    def move(self, tensor: Tensor, kind: str, inputs: list[str], **options: Any) -> None:
        """Makes the levels of a tensor out of levels that lie on its grid already."""
        target = self._clamped.get(id(tensor), tensor)
        self.node(kind, inputs, f"{target.name}/levels", tensor.name, **options)

    def count(self, tensor: Tensor, name: str) -> None:
        """Tells the name of whole numbers that stand for nothing else, such as indices."""
        self._counted[id(tensor)] = name

    def counted(self, tensor: Tensor) -> str:
        """The name of such numbers."""
        return self._counted[id(tensor)]

    def constant(self, name: str, values: Any) -> str:
        """Adds a constant; returns its name."""
        if name not in self.constants:
            array = np.ascontiguousarray(values)
            array = array.reshape(np.shape(values))  # which NumPy makes (1,) of ()
            self.constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def real(self, tensor: Tensor) -> str:
        """The name of the values of a stored tensor, or of a constant on a grid."""
        name = f"{tensor.name}/real"
        if name not in self._real:
            self._real.add(name)
            self.node("DequantizeLinear", [self.levels(tensor), *self._grid(tensor)], name)
        return name

    def levels(self, tensor: Tensor) -> str:
        """The name of the integers of a stored tensor, or of a constant on a grid; uint8."""
        name = f"{tensor.name}/levels"
        if tensor.values is None:
            return name
        return self.constant(name, to_unsigned(tensor.values))

    def weights(self, tensor: Tensor, values: Array, axis: int) -> str:
        """The name of the values of a kernel or a bias, in the layout of ONNX.

        Args:
            tensor: as the program has it.
            values: its integers, laid out anew, int8 or int32.
            axis: of the scales there.
        """
        assert tensor.grid is not None  # it is quantized
        scale = np.broadcast_to(np.float32(tensor.grid.scale), values.shape[axis])
        constant = self._nibbles if tensor.type == "int4" else self.constant
        stored = constant(f"{tensor.name}/levels", values)
        grid = (
            self.constant(f"{tensor.name}/scale", scale),
            constant(f"{tensor.name}/zero", np.zeros(len(scale), values.dtype)),
        )
        name = f"{tensor.name}/real"
        return self.node("DequantizeLinear", [stored, *grid], name, axis=axis)

    def finish(
        self, operation: Operation, kind: str, inputs: list[str], **options: Any
    ) -> None:
        """Adds an operator's node, its activation, and what stores its output."""
        (output,) = operation.outputs
        y = self.node(kind, inputs, output.name + EXACT, **options)
        activation = operation.options.get("fusedActivationFunction", "NONE")
        self.store(output, y, activation)

    def store(self, tensor: Tensor, y: str, activation: str = "NONE") -> None:
        """Rounds what an operator makes to its grid, where an activation clamps it."""
        target, low, high = self.bounds(tensor, activation)
        self._store(target, y, low, high)

    def bounds(self, tensor: Tensor, activation: str = "NONE") -> tuple[Tensor, int, int]:
        """The tensor that is stored, and the least and the largest integer that it takes."""
        target = self._clamped.get(id(tensor), tensor)
        assert tensor.grid is not None and target.grid is not None  # they are stored
        zero = target.grid.zero_point
        low, high = zero - tensor.grid.zero_point - _TO_UNSIGNED, _TO_UNSIGNED - 1
        if activation != "NONE":
            low = max(low, zero)
        if activation == "RELU6":
            high = min(high, zero + int(np.rint(np.float32(6) / np.float32(target.grid.scale))))
        return target, low, high

    def _store(self, tensor: Tensor, y: str, low: int, high: int = 127) -> None:
        """Quantizes to levels, which are clamped where saturation does not do it."""
        bounds = [("Max", low, low > -_TO_UNSIGNED), ("Min", high, high < _TO_UNSIGNED - 1)]
        bounds = [bound for bound in bounds if bound[2]]
        names = [f"{tensor.name}/{kind.lower()}" for kind, _, _ in bounds]
        names = [*[f"{tensor.name}/saturated", *names][: len(bounds)], f"{tensor.name}/levels"]
        x = self.node("QuantizeLinear", [y, *self._grid(tensor)], names[0])
        for (kind, bound, _), name in zip(bounds, names[1:], strict=True):
            level = np.uint8(bound + _TO_UNSIGNED)
            constant = self.constant(f"{tensor.name}/{kind.lower()}/bound", level)
            x = self.node(kind, [x, constant], name)

    def _nibbles(self, name: str, values: Array) -> str:
        """Adds a constant of 4 bits a number; returns its name."""
        kind = self._onnx.TensorProto.INT4
        numbers = values.ravel().tolist()
        self.constants[name] = self._onnx.helper.make_tensor(name, kind, values.shape, numbers)
        return name

    def _grid(self, tensor: Tensor) -> tuple[str, str]:
        grid = tensor.grid
        assert isinstance(grid, Grid)  # it is stored
        zero = np.uint8(grid.zero_point + _TO_UNSIGNED)
        return (
            self.constant(f"{tensor.name}/scale", np.float32(grid.scale)),
            self.constant(f"{tensor.name}/zero", zero),
        )


def to_unsigned(integers: Any) -> Array:
    """What uint8 features hold of the integers of int8 ones."""
    return (np.asarray(integers).astype(int) + _TO_UNSIGNED).astype(np.uint8)


def _moves_levels(operation: Operation) -> bool:
    """Whether it gives a tensor of the same scale another zero point."""
    before, after = operation.inputs[0].grid, operation.outputs[0].grid
    if operation.kind != "QUANTIZE" or before is None or after is None:
        return False
    return bool(before.scale == after.scale)


def _readers(program: Program, tensor: Tensor) -> list[Operation]:
    return [item for item in program.operations if any(x is tensor for x in item.inputs)]
