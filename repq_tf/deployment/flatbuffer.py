"""Reading `.tflite` files with the official schema, and the small parts of writing them."""

import collections
import os
from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from repq_tf.deployment.int4 import unpack
from repq_tf.keras_api import Array, Shape

_OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
_TYPES = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
# What the converter, too, writes between the names of what it has fused.
_BETWEEN_NAMES = ";"
FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_WIDTHS = {
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
SAME_SCALE = (
    "AVERAGE_POOL_2D",
    "BATCH_TO_SPACE_ND",
    "CONCATENATION",
    "DEPTH_TO_SPACE",
    "LEAKY_RELU",
    "MAXIMUM",
    "MAX_POOL_2D",
    "PAD",
    "REDUCE_MAX",
    "RELU",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SPLIT",
    "TRANSPOSE",
)


def load(content: bytes) -> schema.ModelT:
    """Parses the bytes of a `.tflite` file.

    Raises:
        ValueError: they are not a TFLite flatbuffer.
    """
    if bytes(content[4:8]) != b"TFL3":
        raise ValueError("not a TFLite file: the identifier TFL3 is missing")
    return schema.ModelT.InitFromPackedBuf(bytearray(content), 0)


def read(path: str | os.PathLike[str]) -> tuple[bytes, schema.ModelT]:
    """The bytes of a `.tflite` file, and the model parsed.

    Raises:
        ValueError: it is not a whole TFLite file.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        return content, load(content)
    except Exception as error:  # whatever a damaged table makes the parser do
        raise ValueError(f"{path} is not a whole TFLite file: {error}") from error


def dump(model: schema.ModelT) -> bytes:
    """The bytes of a parsed model."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """The name of an operator, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def count_operators(model: schema.ModelT) -> dict[str, int]:
    """The operators of a parsed model with their counts."""
    names = (operator_name(model, op) for graph in model.subgraphs for op in graph.operators)
    return dict(collections.Counter(names))


def names(tensor: schema.TensorT) -> list[str]:
    """The names of the layers that a tensor is the output of: equal ones share one.

    Its whole name comes first, which may be that of a layer with a semicolon.
    """
    name = tensor.name.decode()
    return [name, *name.split(_BETWEEN_NAMES)]


def indices_by_name(graph: schema.SubGraphT) -> dict[str, int]:
    """`{name of a layer: number of the tensor of its output}`."""
    return {name: index for index, t in enumerate(graph.tensors) for name in names(t)}


def add_name(tensor: schema.TensorT, name: str) -> None:
    """Adds a name to those of a tensor."""
    tensor.name += f"{_BETWEEN_NAMES}{name}".encode()


def type_name(tensor: schema.TensorT) -> str:
    """The type of a tensor, such as "INT8"."""
    return _TYPES[tensor.type]


def tensor_data(model: schema.ModelT, tensor: schema.TensorT) -> Any:
    """The constant that a tensor holds, or None."""
    if not is_constant(model, tensor):
        return None
    data = model.buffers[tensor.buffer].data
    shape = tensor.shape if tensor.shape is not None else ()
    if _TYPES[tensor.type] == "INT4":
        return unpack(data, shape)
    kind = _WIDTHS.get(_TYPES[tensor.type], np.float32)
    return np.frombuffer(bytes(bytearray(data)), kind).reshape(shape)


def is_constant(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    """Whether a tensor holds a constant."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def buffer_of(values: Array) -> schema.BufferT:
    """A buffer with the bytes of an array."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return buffer


def producers(graph: schema.SubGraphT) -> dict[int, schema.OperatorT]:
    """The operator that makes each tensor, by the tensor's number."""
    return {int(o): operator for operator in graph.operators for o in operator.outputs}


def weighted_operator(
    model: schema.ModelT, producer: Mapping[int, schema.OperatorT], index: int
) -> schema.OperatorT:
    """Returns the convolution or dense operator behind a tensor.

    Args:
        model: the parsed file.
        producer: `producers(graph)`.
        index: the number of the tensor.
    """
    operator = producer[int(index)]
    while operator_name(model, operator) not in WEIGHTED:
        operator = producer[int(operator.inputs[0])]
    return operator


def features(model: schema.ModelT, operator: schema.OperatorT) -> list[int]:
    """The numbers of an operator's tensors that are no constants."""
    tensors = model.subgraphs[0].tensors
    indices = [int(i) for i in (*operator.inputs, *operator.outputs) if int(i) >= 0]
    return [i for i in indices if not is_constant(model, tensors[i])]


def scale_and_zero(tensor: schema.TensorT) -> tuple[float, int]:
    """Scale and zero point of a tensor; (0, 0) if unquantized."""
    have = tensor.quantization
    if have is None or have.scale is None or have.zeroPoint is None:
        return 0.0, 0
    return have.scale[0], int(have.zeroPoint[0])


def shape(tensor: schema.TensorT) -> Shape:
    """The shape of a tensor, with None where it may vary."""
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return tuple(None if size < 0 else int(size) for size in sizes)


def kernel_layout(kernel: Array, operator: str) -> tuple[Array, int]:
    """A kernel `(kh, kw, in, out)` as an operator holds it, and the axis of its channels."""
    if operator == "CONV_2D":
        return kernel.transpose(3, 0, 1, 2), 0
    if operator == "DEPTHWISE_CONV_2D":
        return kernel.reshape(1, *kernel.shape[:2], -1), 3
    return kernel.reshape(-1, kernel.shape[-1]).T, 0


def integer_operators(content: bytes) -> dict[str, int]:
    """The operators of an all-integer file, with their counts.

    Float tensors are allowed only as inputs and outputs of the model, behind a
    QUANTIZE or before a DEQUANTIZE.

    Raises:
        ValueError: something computes in floating point; it is named.
    """
    model, bad = load(content), []
    for graph in model.subgraphs:
        ends = {int(i) for i in [*graph.inputs, *graph.outputs]}
        for index, tensor in enumerate(graph.tensors):
            if _TYPES[tensor.type] in FLOATS and index not in ends:
                bad.append(f"tensor {tensor.name.decode()!r} is {_TYPES[tensor.type]}")
        for operator in graph.operators:
            name = operator_name(model, operator)
            inside = name == "DEQUANTIZE" and int(operator.outputs[0]) not in ends
            if name == "CUSTOM" or inside:
                bad.append(f"operator {name}")
    if bad:
        raise ValueError(f"the file is not all integer: {'; '.join(bad[:8])}")
    return count_operators(model)


def set_quantization(
    tensor: schema.TensorT, scale: Any, zero_point: int, axis: int = 0
) -> None:
    """Writes the grid of a tensor; `axis` is that of the scales, if there are several."""
    parameters = tensor.quantization or schema.QuantizationParametersT()
    parameters.scale = np.atleast_1d(np.asarray(scale, np.float32))
    parameters.zeroPoint = np.full(parameters.scale.shape, zero_point, np.int64)
    parameters.quantizedDimension = axis
    parameters.min = parameters.max = None
    tensor.quantization = parameters


def opcode(model: schema.ModelT, builtin: int) -> int:
    """The index of a builtin operator's code in the model, which may be new."""
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode = builtin, min(builtin, 127)
    code.version = 3 if builtin == schema.BuiltinOperator.DEQUANTIZE else 2
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
