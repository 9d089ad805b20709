"""The ends of a `.tflite` file: what it takes and what it gives."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from repq_tf.arithmetic import container_top, input_levels
from repq_tf.deployment.flatbuffer import (
    buffer_of,
    dump,
    load,
    opcode,
    operator_name,
    set_quantization,
    shape,
    tensor_data,
    type_name,
)
from repq_tf.graphs import free_name
from repq_tf.keras_api import Array

_PIXELS = 256
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


def set_end_types(
    content: bytes, input_type: str, output_type: str, pixel_table: Array | None = None
) -> bytes:
    """Gives an int8 or int16 file inputs and outputs of other types.

    Args:
        content: the bytes of a file with ends of its own type.
        input_type: that one, "uint8" or "float32".
        output_type: likewise.
        pixel_table: the integers of the int8 input for each uint8 pixel value, int8
            `(256, channels)`; None for uint8 on the grid of the int8 input, which is
            `pixel - 128`.
    """
    model = load(content)
    graph = model.subgraphs[0]
    own = type_name(graph.tensors[int(graph.inputs[0])]).lower()
    if pixel_table is not None and (pixel_table != _SHIFTED[:, None]).any():
        _look_up(model, pixel_table)
    elif input_type != own:
        for position, index in enumerate(list(graph.inputs)):
            twin = _twin(graph, index, input_type)
            graph.operators.insert(0, _operator(model, "QUANTIZE", [twin], index))
            graph.inputs[position] = twin
            _replace(model.signatureDefs[0].inputs, index, twin)
    if output_type != own:
        kind = "QUANTIZE" if output_type == "uint8" else "DEQUANTIZE"
        for position, index in enumerate(list(graph.outputs)):
            twin = _twin(graph, index, output_type)
            graph.operators.append(_operator(model, kind, [index], twin))
            graph.outputs[position] = twin
            _replace(model.signatureDefs[0].outputs, index, twin)
    return dump(model)


def set_signature(content: bytes, names: Mapping[str, str]) -> bytes:
    """Calls what goes in and out by the model's names in a file's signature.

    Args:
        content: the bytes of a file, with a signature or, from models of variables, without.
        names: `{the converter's name: the model's}`, of the input and the outputs in order.
    """
    model = load(content)
    if not model.signatureDefs:
        model.signatureDefs = [_signature(model.subgraphs[0], list(names))]
    for entry in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs):
        entry.name = names[entry.name.decode()].encode()
    return dump(model)


def _signature(graph: schema.SubGraphT, names: Sequence[str]) -> schema.SignatureDefT:
    signature, entries = schema.SignatureDefT(), []
    for name, index in zip(names, (*graph.inputs, *graph.outputs), strict=True):
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), int(index)
        entries.append(entry)
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs, signature.outputs = entries[:1], entries[1:]
    return signature


def _look_up(model: schema.ModelT, table: Array) -> None:
    """Puts `GATHER(table, CAST(pixels))` before the input; channels may differ by an ADD.

    Table lookup is exact in every runtime, whatever the step and the normalisation are.
    """
    graph = model.subgraphs[0]
    inner = int(graph.inputs[0])
    pixels, index = (
        _twin(graph, inner, "uint8", "pixels"),
        _twin(graph, inner, "int32", "index"),
    )
    graph.tensors[pixels].quantization = None
    cast = {"inDataType": schema.TensorType.UINT8, "outDataType": schema.TensorType.INT32}
    added = [_operator(model, "CAST", [pixels], index, **cast)]
    if (table == table[:, :1]).all():
        table = table[:, 0]
    else:
        offsets = np.arange(table.shape[1], dtype=np.int32) * _PIXELS
        per_channel = _constant(model, inner, "offsets", offsets)
        shifted = _twin(graph, inner, "int32", "shifted")
        added.append(_operator(model, "ADD", [index, per_channel], shifted))
        index, table = shifted, table.T.ravel()
    constant = _constant(model, inner, "table", table)
    graph.tensors[constant].quantization = graph.tensors[inner].quantization
    added.append(_operator(model, "GATHER", [constant, index], inner, axis=0))
    graph.operators = [*added, *graph.operators]
    graph.inputs[0] = pixels
    _replace(model.signatureDefs[0].inputs, inner, pixels)


def takes_pixels(model: schema.ModelT) -> bool:
    """Whether a parsed file looks its input up in a table."""
    return _lookup(model) is not None


def pixel_levels(model: schema.ModelT) -> tuple[Array, float, int]:
    """The table of a parsed file that takes pixels, without its zero point, and its grid.

    Returns:
        Integers `(channels or 1, 256)`, the scale, and the largest integer of the grid.
    """
    table = model.subgraphs[0].tensors[_lookup(model).inputs[0]]
    scale, zero = table.quantization.scale[0], int(table.quantization.zeroPoint[0])
    levels = tensor_data(model, table).reshape(-1, _PIXELS).astype(int) - zero
    return levels, scale, container_top(8) - zero


def pixels_of(model: schema.ModelT, values: Array, exactly: bool = False) -> Array:
    """The pixels that a file makes some values of, or the nearest ones.

    Args:
        model: a parsed file that takes pixels.
        values: what the network would be given, `(..., channels)`.
        exactly: whether to refuse values that are those of no pixel.

    Returns:
        uint8 pixels.

    Raises:
        ValueError: `exactly`, and a value is that of no pixel.
    """
    rows, scale, top = pixel_levels(model)
    rows = np.broadcast_to(rows, (values.shape[-1], _PIXELS))
    levels = input_levels(values, scale, -top - 1, top)  # an unsigned grid has its lowest at 0
    found = np.empty(levels.shape, np.uint8)
    for channel, row in enumerate(rows):
        order = np.argsort(row, kind="stable")
        middles = (row[order][1:] + row[order][:-1]) / 2
        found[..., channel] = order[np.searchsorted(middles, levels[..., channel])]
        wrong = row[found[..., channel]] != levels[..., channel]
        if exactly and wrong.any():
            raise ValueError(
                "images must be pixels, normalised as the file does it. Received: "
                f"{np.count_nonzero(wrong)} of {wrong.size} values of channel {channel} that "
                "no pixel becomes"
            )
    return found


def _lookup(model: schema.ModelT) -> Any:
    """The GATHER behind a file's input, or None."""
    graph = model.subgraphs[0]
    reader = {int(i): operator for operator in graph.operators for i in operator.inputs}
    operator = reader[int(graph.inputs[0])]
    if operator_name(model, operator) != "CAST":
        return None
    while operator_name(model, operator) != "GATHER":
        operator = reader[int(operator.outputs[0])]
    return operator


def describe(model: schema.ModelT) -> dict[str, list[dict[str, Any]]]:
    """What goes in and out of a parsed file.

    Returns:
        `{"inputs": [...], "outputs": [...]}`, for each tensor a dict of its `name`, `type`,
        `shape` (None for a size that is open), and the `scale` and `zero_point` of its grid, or
        None.
    """
    graph = model.subgraphs[0]
    return {
        "inputs": [_describe(graph.tensors[int(i)]) for i in graph.inputs],
        "outputs": [_describe(graph.tensors[int(i)]) for i in graph.outputs],
    }


def _describe(tensor: schema.TensorT) -> dict[str, Any]:
    grid = tensor.quantization
    on_grid = grid is not None and grid.scale is not None
    return {
        "name": tensor.name.decode(),
        "type": type_name(tensor).lower(),
        "shape": list(shape(tensor)),
        "scale": float(grid.scale[0]) if on_grid else None,
        "zero_point": int(grid.zeroPoint[0]) if on_grid else None,
    }


def _twin(graph: schema.SubGraphT, index: int, kind: str, suffix: str | None = None) -> int:
    """A new tensor of the shape of another one and of another type."""
    source, twin = graph.tensors[int(index)], schema.TensorT()
    twin.shape, twin.shapeSignature = source.shape, source.shapeSignature
    twin.hasRank, twin.buffer = source.hasRank, 0
    twin.type = getattr(schema.TensorType, kind.upper())
    twin.name = _name(graph, index, suffix or kind)
    if kind == "uint8":
        parameters = source.quantization
        set_quantization(twin, parameters.scale, int(parameters.zeroPoint[0]) + 128)
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def _constant(model: schema.ModelT, index: int, suffix: str, values: Array) -> int:
    """A new constant, called after another tensor."""
    graph, tensor = model.subgraphs[0], schema.TensorT()
    model.buffers.append(buffer_of(values))
    tensor.buffer = len(model.buffers) - 1
    tensor.shape, tensor.hasRank = np.asarray(values.shape, np.int32), True
    tensor.type = getattr(schema.TensorType, values.dtype.name.upper())
    tensor.name = _name(graph, index, suffix)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _name(graph: schema.SubGraphT, index: int, suffix: str) -> bytes:
    """A new name, after another tensor's; a layer may have the nearest one."""
    taken = {tensor.name.decode() for tensor in graph.tensors}
    return free_name(f"{graph.tensors[int(index)].name.decode()}_{suffix}", taken).encode()


def _operator(
    model: schema.ModelT, kind: str, sources: Sequence[int], target: int, **options: Any
) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex = opcode(model, getattr(schema.BuiltinOperator, kind))
    operator.inputs = np.asarray(sources, np.int32)
    operator.outputs = np.asarray([target], np.int32)
    name = f"{kind.capitalize()}Options"
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    operator.builtinOptions = getattr(schema, f"{name}T")()
    for option, value in options.items():
        setattr(operator.builtinOptions, option, value)
    return operator


def _replace(entries: Iterable[schema.TensorMapT], old: int, new: int) -> None:
    for entry in entries:
        if entry.tensorIndex == old:
            entry.tensorIndex = new
