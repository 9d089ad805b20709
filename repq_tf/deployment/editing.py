"""Exact grids, weights and biases in a `.tflite` file.

The converter decides the operators; the numbers that it derives from fake-quantization
ranges can be off in the last bit, or be re-gridded below 8 bits, so `set_grids`
writes the exact ones: scales, zero points, integer weights and integer biases.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from repq_tf.deployment.flatbuffer import (
    SAME_SCALE,
    add_name,
    buffer_of,
    dump,
    is_constant,
    kernel_layout,
    load,
    opcode,
    operator_name,
    producers,
    set_quantization,
    tensor_data,
    type_name,
    weighted_operator,
)
from repq_tf.keras_api import Array


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a stored tensor of the file must be.

    Attributes:
        scale: the step, float32.
        zero_point: the integer that stands for 0.
        weights: integer weights of the operator that makes it, `(kh, kw, in, out)` or
            None; likewise `weight_scale` `(out,)` and integer `bias` `(out,)`.
        name: the tensor's name in the file.
    """

    scale: np.float32
    zero_point: int
    name: str = ""
    weights: np.ndarray | None = None
    weight_scale: np.ndarray | None = None
    bias: np.ndarray | None = None


def set_grids(
    content: bytes, input_grid: Grid, grids: Mapping[str, Grid], outputs: Sequence[str]
) -> bytes:
    """Writes exact grids, weights and biases, and drops all other outputs.

    Args:
        content: bytes from the converter; each gridded tensor is an output in the
            signature.
        input_grid: the `Grid` of the model's input.
        grids: `{signature key: Grid}`.
        outputs: signature keys of the outputs to keep.

    Returns:
        The new bytes.

    Raises:
        ValueError: a tensor of the file has no grid, so it would not be exact.
    """
    editor = _Editor(load(content))
    editor.set_grid(editor.graph.inputs[0], input_grid)
    for key, grid in grids.items():
        editor.set_grid(editor.outputs[key], grid)
    editor.propagate()
    for key, grid in grids.items():
        if grid.weights is not None:
            editor.set_weights(editor.outputs[key], grid)
    editor.separate_names({grid.name for grid in grids.values()})
    editor.keep_outputs(outputs)
    editor.drop_unused_buffers()
    return dump(editor.model)


class _Editor:
    """One file being edited."""

    def __init__(self, model: schema.ModelT) -> None:
        self.model = model
        self.graph = model.subgraphs[0]
        self.signature = model.signatureDefs[0]
        self.outputs = {o.name.decode(): int(o.tensorIndex) for o in self.signature.outputs}
        self.producer = producers(self.graph)
        self.done: set[int] = set()
        self.named: set[int] = set()

    def tensor(self, index: int) -> schema.TensorT:
        return self.graph.tensors[int(index)]

    def is_constant(self, index: int) -> bool:
        return is_constant(self.model, self.tensor(index))

    def is_activation(self, index: int) -> bool:
        if int(index) < 0 or self.is_constant(index):
            return False
        return type_name(self.tensor(index)) in ("INT8", "UINT8")

    def set_grid(self, index: int, grid: Grid) -> None:
        tensor, index = self.tensor(index), int(index)
        if index in self.done:
            have = tensor.quantization
            same = have.scale[0] == np.float32(grid.scale)
            if not same or have.zeroPoint[0] != grid.zero_point:
                raise ValueError(f"tensor {tensor.name.decode()!r} would need two scales")
        set_quantization(tensor, grid.scale, grid.zero_point)
        if grid.name and index in self.named:  # the converter shares what is equal
            add_name(tensor, grid.name)
        elif grid.name:
            tensor.name = grid.name.encode()
            self.named.add(index)
        self.done.add(index)

    def separate_names(self, taken: Collection[str]) -> None:
        """Renames what the converter happened to call as a layer of the model is called."""
        for index, tensor in enumerate(self.graph.tensors):
            if index not in self.named and tensor.name.decode() in taken:
                tensor.name += b"/inner"

    def propagate(self) -> None:
        """Carries grids through operators that keep the scale, both ways."""
        operators = self.graph.operators
        keep = [op for op in operators if operator_name(self.model, op) in SAME_SCALE]
        for operator in reversed(keep):
            self._carry(operator.outputs[0], operator.inputs)
        for operator in keep:
            source = next(i for i in operator.inputs if self.is_activation(i))
            self._carry(source, operator.outputs)
            for index in operator.inputs:  # the constant of a MAXIMUM
                if self.is_constant(index) and type_name(self.tensor(index)) == "INT8":
                    have = self.tensor(source).quantization
                    set_quantization(self.tensor(index), have.scale, have.zeroPoint[0])
        left = [
            tensor.name.decode()
            for index, tensor in enumerate(self.graph.tensors)
            if self.is_activation(index) and index not in self.done
        ]
        if left:
            raise ValueError(f"tensors of the file without a known scale: {left}")

    def _carry(self, source: int, targets: Iterable[int]) -> None:
        if int(source) not in self.done:
            return
        have = self.tensor(source).quantization
        for index in targets:
            if self.is_activation(index) and int(index) not in self.done:
                set_quantization(self.tensor(index), have.scale, have.zeroPoint[0])
                self.done.add(int(index))

    def set_weights(self, index: int, grid: Grid) -> None:
        """Writes the weights of the convolution behind a tensor."""
        operator = weighted_operator(self.model, self.producer, index)
        kind = operator_name(self.model, operator)
        source, kernel = (self.tensor(i) for i in operator.inputs[:2])
        bias = self._bias(operator, len(np.asarray(grid.bias)), f"{grid.name}/bias")
        integers, axis = kernel_layout(np.asarray(grid.weights), kind)
        if list(integers.shape) != list(kernel.shape):
            raise ValueError(
                f"tensor {grid.name!r}: the file's kernel is {list(kernel.shape)}, but the "
                f"model's {list(integers.shape)}"
            )
        self._set_data(kernel, integers.astype(np.int8))
        set_quantization(kernel, grid.weight_scale, 0, axis)
        self._set_data(bias, np.asarray(grid.bias).astype(np.int32))
        set_quantization(bias, source.quantization.scale[0] * grid.weight_scale, 0)

    def _bias(self, operator: schema.OperatorT, channels: int, name: str) -> schema.TensorT:
        """The bias tensor of an operator; a new one where the converter left out zeros."""
        if len(operator.inputs) > 2 and operator.inputs[2] >= 0:
            return self.tensor(operator.inputs[2])
        bias = schema.TensorT()
        bias.name, bias.shape, bias.hasRank = name.encode(), [channels], True
        bias.type = schema.TensorType.INT32
        self.graph.tensors.append(bias)
        index = len(self.graph.tensors) - 1
        operator.inputs = np.asarray([*operator.inputs[:2], index], np.int32)
        return bias

    def _set_data(self, tensor: schema.TensorT, array: Array) -> None:
        self.model.buffers.append(buffer_of(array))
        tensor.buffer = len(self.model.buffers) - 1

    def keep_outputs(self, keys: Sequence[str]) -> None:
        kept = {key: self.outputs[key] for key in keys}
        by_name = {o.name.decode(): o for o in self.signature.outputs}
        self.signature.outputs = [by_name[key] for key in keys]
        self.graph.outputs = np.asarray(list(kept.values()), np.int32)

    def drop_unused_buffers(self) -> None:
        model = self.model
        tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
        holders = [*tensors, *(model.metadata or [])]
        used = [0, *sorted({holder.buffer for holder in holders if holder.buffer})]
        renumbered = {old: new for new, old in enumerate(used)}
        model.buffers = [model.buffers[index] for index in used]
        for holder in holders:
            holder.buffer = renumbered[holder.buffer]


def clamp_in_rescale(content: bytes) -> bytes:
    """Turns clamps into QUANTIZEs that saturate, which the runtime's fast kernels have.

    - `MINIMUM(x, bound)` to another zero point, with which the container's end is the bound.
    - `MAXIMUM(x, bound)` to the same one: a signed grid of fewer than 8 bits clamps at both
      ends. The container's saturation is the upper clamp. Shifting the zero point of x so
      that the bound falls on -128 makes the convolution itself saturate there, and an
      equal-scale QUANTIZE shifts back.
    """
    model = load(content)
    graph = model.subgraphs[0]
    outputs = {int(i) for i in graph.outputs}
    producer = producers(graph)
    for operator in graph.operators:
        if operator_name(model, operator) not in ("MAXIMUM", "MINIMUM"):
            continue
        constants = [i for i in operator.inputs if is_constant(model, graph.tensors[i])]
        source = next(int(i) for i in operator.inputs if i not in constants)
        have = graph.tensors[source].quantization
        target = graph.tensors[int(operator.outputs[0])].quantization
        if target.zeroPoint[0] == have.zeroPoint[0]:
            readers = sum(source in [int(i) for i in op.inputs] for op in graph.operators)
            if source in outputs or readers != 1:
                continue
            bound = int(tensor_data(model, graph.tensors[constants[0]]).reshape(-1)[0])
            lowest = bound - int(target.zeroPoint[0])
            set_quantization(graph.tensors[source], target.scale, -128 - lowest)
            before = producer[source]
            while operator_name(model, before) == "RESHAPE":
                index = int(before.inputs[0])
                set_quantization(graph.tensors[index], target.scale, -128 - lowest)
                before = producer[index]
        operator.opcodeIndex = opcode(model, schema.BuiltinOperator.QUANTIZE)
        operator.inputs = np.asarray([source], np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.QuantizeOptions
        operator.builtinOptions = schema.QuantizeOptionsT()
    return dump(model)
