"""Types in which a `.tflite` file stores tensors: INT4 kernels, INT16 activations."""

from collections.abc import Iterable, Iterator

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from repq_tf.deployment.flatbuffer import (
    WEIGHTED,
    buffer_of,
    dump,
    indices_by_name,
    is_constant,
    load,
    opcode,
    operator_name,
    producers,
    tensor_data,
    weighted_operator,
)
from repq_tf.deployment.int4 import pack

# The operators' versions from which on they take INT4 kernels, or INT16 activations.
_INT4_VERSIONS = {"CONV_2D": 7, "FULLY_CONNECTED": 10}
_INT4_INT16_VERSIONS = {"CONV_2D": 8, "FULLY_CONNECTED": 13}
_INT16_VERSIONS = {
    "ADD": 3,
    "AVERAGE_POOL_2D": 3,
    "BATCH_TO_SPACE_ND": 4,
    "CONCATENATION": 3,
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 11,
    "MAXIMUM": 4,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MINIMUM": 4,
    "PAD": 3,
    "REDUCE_MAX": 3,
    "RELU": 3,
    "RELU6": 3,
    "RESHAPE": 1,
    "SPLIT": 4,
    "TRANSPOSE": 5,
}


def store_int4(content: bytes, names: Iterable[str]) -> bytes:
    """Stores the kernels behind the tensors of some names in 4 bits.

    Args:
        content: the bytes of a file.
        names: of the tensors that the operators make, directly or through a clamp.
    """
    model = load(content)
    for operator in _weighted(model, names):
        kernel = model.subgraphs[0].tensors[operator.inputs[1]]
        model.buffers[kernel.buffer] = buffer_of(pack(tensor_data(model, kernel)))
        kernel.type = schema.TensorType.INT4
        code = model.operatorCodes[operator.opcodeIndex]
        wide = model.subgraphs[0].tensors[operator.inputs[0]].type == schema.TensorType.INT16
        versions = _INT4_INT16_VERSIONS if wide else _INT4_VERSIONS
        code.version = max(code.version, versions[operator_name(model, operator)])
    return dump(model)


def widen(content: bytes) -> bytes:
    """Stores the activations of a file in 16 bits; scales and zero points are so already.

    Biases of dense convolutions and matrices stay INT32, and the operators say so: the
    converter leaves `quantizedBiasType` unset, with which the kernel reads them as INT64. With
    INT32 they run on the runtime's fast kernels, whose sums have 32 bits; see
    `repq_tf.arithmetic.rescale`. Those of grouped and depthwise convolutions become INT64.

    Raises:
        ValueError: the runtime has no INT16 kernel of an operator; it is named.
    """
    model = load(content)
    graph = model.subgraphs[0]
    kernels = set()
    for operator in graph.operators:
        name = operator_name(model, operator)
        if name not in _INT16_VERSIONS:
            raise ValueError(f"the runtime has no INT16 kernel of operator {name}")
        code = model.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, _INT16_VERSIONS[name])
        if name in WEIGHTED:
            kernels.add(int(operator.inputs[1]))
            _set_bias_type(model, graph, operator, name)
        elif name == "ADD":
            operator.builtinOptions.potScaleInt16 = False
        elif name == "MINIMUM":
            _restore_relu(model, graph, operator)
    for index, tensor in enumerate(graph.tensors):
        if tensor.type == schema.TensorType.INT8 and index not in kernels:
            _retype(model, tensor, "INT16")
    return dump(model)


def _restore_relu(
    model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT
) -> None:
    """Turns the stand-in for a ReLU, a MINIMUM with a positive number, into one."""
    constant = next(int(i) for i in operator.inputs if is_constant(model, graph.tensors[i]))
    if tensor_data(model, graph.tensors[constant]).max() > 0:
        operator.opcodeIndex = opcode(model, schema.BuiltinOperator.RELU)
        code = model.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, _INT16_VERSIONS["RELU"])
        operator.inputs = np.asarray([i for i in operator.inputs if i != constant], np.int32)
        operator.builtinOptionsType = schema.BuiltinOptions.NONE
        operator.builtinOptions = None


def _set_bias_type(
    model: schema.ModelT, graph: schema.SubGraphT, operator: schema.OperatorT, name: str
) -> None:
    source, kernel, bias = (graph.tensors[int(i)] for i in operator.inputs[:3])
    grouped = name == "CONV_2D" and source.shape[-1] != kernel.shape[-1]
    if grouped or name == "DEPTHWISE_CONV_2D":
        _retype(model, bias, "INT64")
    if name != "DEPTHWISE_CONV_2D":
        operator.builtinOptions.quantizedBiasType = bias.type


def _retype(model: schema.ModelT, tensor: schema.TensorT, kind: str) -> None:
    """Gives a tensor another type, and its constant, if it has one."""
    data = tensor_data(model, tensor)
    tensor.type = getattr(schema.TensorType, kind)
    if data is None:
        return
    buffer = buffer_of(data.astype(kind.lower()))
    sharers = [other for other in model.subgraphs[0].tensors if other.buffer == tensor.buffer]
    if len(sharers) == 1:
        model.buffers[tensor.buffer] = buffer
    else:  # equal constants of several types
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1


def has_int4(model: schema.ModelT) -> bool:
    """Whether a parsed file has a kernel of 4 bits."""
    tensors = model.subgraphs[0].tensors
    return any(tensor.type == schema.TensorType.INT4 for tensor in tensors)


def _weighted(model: schema.ModelT, names: Iterable[str]) -> Iterator[schema.OperatorT]:
    """The convolutions and dense operators behind the tensors of some names."""
    graph = model.subgraphs[0]
    indices, producer = indices_by_name(graph), producers(graph)
    for name in names:
        yield weighted_operator(model, producer, indices[name])
