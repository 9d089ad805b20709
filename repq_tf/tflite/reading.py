"""Reading `.tflite` files: their operators, tensors and ends."""

import collections
import functools
import os
from typing import Any

import numpy as np

from repq_tf.keras_api import Shape
from repq_tf.tflite import schema
from repq_tf.tflite.int4 import unpack

_IDENTIFIER = b"TFL3"
FLOATS = ("FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16")
_WIDTHS = {
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
}


@functools.cache
def _names(enumeration: Any) -> dict[int, str]:
    """The names of an enumeration's values."""
    return {v: k for k, v in vars(enumeration).items() if not k.startswith("_")}


def is_tflite(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as `.tflite` files do, or is called so."""
    if os.fspath(path).endswith(".tflite"):
        return True
    with open(path, "rb") as file:
        return file.read(8)[4:] == _IDENTIFIER


def load(content: bytes) -> Any:
    """Parses the bytes of a `.tflite` file.

    Raises:
        ValueError: they are not a TFLite flatbuffer.
    """
    if bytes(content[4:8]) != _IDENTIFIER:
        raise ValueError("not a TFLite file: the identifier TFL3 is missing")
    return schema.ModelT.InitFromPackedBuf(bytearray(content), 0)


def read(path: str | os.PathLike[str]) -> tuple[bytes, Any]:
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


def operator_name(model: Any, operator: Any) -> str:
    """The name of an operator, such as "CONV_2D"."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _names(schema.BuiltinOperator)[max(code.builtinCode, code.deprecatedBuiltinCode)]


def count_operators(model: Any) -> dict[str, int]:
    """The operators of a parsed model with their counts."""
    names = (operator_name(model, op) for graph in model.subgraphs for op in graph.operators)
    return dict(collections.Counter(names))


def type_name(tensor: Any) -> str:
    """The type of a tensor, such as "INT8"."""
    return _names(schema.TensorType)[tensor.type]


def tensor_data(model: Any, tensor: Any) -> Any:
    """The constant that a tensor holds, or None."""
    if not is_constant(model, tensor):
        return None
    data = model.buffers[tensor.buffer].data
    shape = tensor.shape if tensor.shape is not None else ()
    if _names(schema.TensorType)[tensor.type] == "INT4":
        return unpack(data, shape)
    kind = _WIDTHS.get(_names(schema.TensorType)[tensor.type], np.float32)
    return np.frombuffer(bytes(bytearray(data)), kind).reshape(shape)


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether a tensor holds a constant."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def producers(graph: Any) -> dict[int, Any]:
    """The operator that makes each tensor, by the tensor's number."""
    return {int(o): operator for operator in graph.operators for o in operator.outputs}


def features(model: Any, operator: Any) -> list[int]:
    """The numbers of an operator's tensors that are no constants."""
    tensors = model.subgraphs[0].tensors
    indices = [int(i) for i in (*operator.inputs, *operator.outputs) if int(i) >= 0]
    return [i for i in indices if not is_constant(model, tensors[i])]


def scale_and_zero(tensor: Any) -> tuple[float, int]:
    """Scale and zero point of a tensor; (0, 0) if unquantized."""
    have = tensor.quantization
    if have is None or have.scale is None or have.zeroPoint is None:
        return 0.0, 0
    return have.scale[0], int(have.zeroPoint[0])


def shape(tensor: Any) -> Shape:
    """The shape of a tensor, with None where it may vary."""
    sizes = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return tuple(None if size < 0 else int(size) for size in sizes)


def indices_by_name(graph: Any) -> dict[str, int]:
    """`{name of a tensor: its number}`; those of layers' outputs bear the layers' names."""
    return {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}


def signature_inputs(model: Any) -> list[str]:
    """The names of a parsed file's inputs in its signature, in their order; [] without one."""
    if not model.signatureDefs:
        return []
    names = {int(end.tensorIndex): end.name.decode() for end in model.signatureDefs[0].inputs}
    return [names[int(k)] for k in model.subgraphs[0].inputs]


def has_int4(model: Any) -> bool:
    """Whether a parsed file has a kernel of 4 bits."""
    tensors = model.subgraphs[0].tensors
    return any(tensor.type == schema.TensorType.INT4 for tensor in tensors)


def describe(model: Any) -> dict[str, list[dict[str, Any]]]:
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


def _describe(tensor: Any) -> dict[str, Any]:
    grid = tensor.quantization
    on_grid = grid is not None and grid.scale is not None
    return {
        "name": tensor.name.decode(),
        "type": type_name(tensor).lower(),
        "shape": list(shape(tensor)),
        "scale": float(grid.scale[0]) if on_grid else None,
        "zero_point": int(grid.zeroPoint[0]) if on_grid else None,
    }
