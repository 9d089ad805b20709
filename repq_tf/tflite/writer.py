"""A program as the bytes of a `.tflite` file."""

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np

from repq_tf.keras_api import Array
from repq_tf.tflite import schema
from repq_tf.tflite.int4 import pack
from repq_tf.tflite.operators import INT4_VERSIONS, OPERATORS
from repq_tf.tflite.program import Grid, Operation, Program, Tensor
from repq_tf.version import __version__

_SIGNATURE = b"serving_default"
# Runtimes read constants in place, by instructions that want them so.
_ALIGNMENT = 16
_FORMAT = 3
# The enumeration in the schema of what an option names.
_ENUMERATIONS = {
    "fusedActivationFunction": "ActivationFunctionType",
    "inDataType": "TensorType",
    "outType": "TensorType",
    "outDataType": "TensorType",
    "padding": "Padding",
    "quantizedBiasType": "TensorType",
}
# From these on runtimes know grouped convolutions, and dense layers that keep the rank.
_GROUPED_VERSION = 6
_KEEPS_RANK_VERSION = 5
# Likewise, of what else an operator can be asked to do.
_DILATED_VERSION = 2
_CLAMPED_TRANSPOSE_VERSION = 4
# Codes from here on do not fit the byte that old runtimes read.
_LARGEST_OLD_CODE = 127


def write(program: Program) -> bytes:
    """The bytes of a file that computes a program.

    Constants lie at multiples of 16 bytes, equal ones once; operators have the least versions
    that take their types; the signature has the program's names.

    Args:
        program: the `Program`.

    Raises:
        ValueError: the runtime has no kernel of an operator for a type; it is named.
    """
    buffers, codes = _Buffers(), _Codes()
    tensors = program.tensors
    numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
    graph = schema.SubGraphT()
    graph.name = b"main"
    graph.tensors = [_tensor(tensor, buffers) for tensor in tensors]
    graph.operators = [_operator(item, codes, numbers) for item in program.operations]
    ends = program.inputs, program.outputs
    graph.inputs, graph.outputs = (_numbers(end.values(), numbers) for end in ends)
    model = schema.ModelT()
    model.version, model.description = _FORMAT, f"repq_tf {__version__}".encode()
    model.subgraphs, model.buffers = [graph], buffers.made
    model.operatorCodes = codes.made
    named = ({n: numbers[id(tensor)] for n, tensor in end.items()} for end in ends)
    model.signatureDefs = [signature(*named)]
    return dump(model)


def dump(model: Any) -> bytes:
    """The bytes of a model of the schema."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    """The signature of a file.

    Args:
        inputs: `{name: number of the tensor}`.
        outputs: likewise.
    """
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = _SIGNATURE, 0
    made.inputs, made.outputs = (
        [_entry(name, number) for name, number in side.items()] for side in (inputs, outputs)
    )
    return made


def _entry(name: str, number: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name.encode(), number
    return made


class _Buffers:
    """The buffers of a file, one for each content; the first is that of no content."""

    def __init__(self) -> None:
        self.made = [schema.BufferT()]
        self._numbers: dict[bytes, int] = {b"": 0}

    def number(self, content: bytes) -> int:
        if content not in self._numbers:
            self._numbers[content] = len(self.made)
            self.made.append(_aligned(content))
        return self._numbers[content]


def _aligned(content: bytes) -> Any:
    """A buffer that packs itself at a multiple of `_ALIGNMENT`; the schema's own does not."""

    class Aligned(schema.BufferT):  # type: ignore[misc,name-defined]
        def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return int(schema.BufferEnd(builder))

    return Aligned()


class _Codes:
    """The operator codes of a file, one for each operator and version."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self._numbers: dict[tuple[str, int], int] = {}

    def number(self, kind: str, version: int) -> int:
        key = kind, version
        if key not in self._numbers:
            self._numbers[key] = len(self.made)
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, _LARGEST_OLD_CODE)
            code.version = version
            self.made.append(code)
        return self._numbers[key]


def _tensor(tensor: Tensor, buffers: _Buffers) -> Any:
    made = schema.TensorT()
    made.name, made.hasRank = tensor.name.encode(), True
    made.type = getattr(schema.TensorType, tensor.type.upper())
    made.shape = np.asarray([1 if n is None else n for n in tensor.shape], np.int32)
    if None in tensor.shape:
        made.shapeSignature = np.asarray(
            [-1 if n is None else n for n in tensor.shape], np.int32
        )
    made.buffer = 0 if tensor.values is None else buffers.number(_content(tensor))
    if tensor.grid is not None:
        made.quantization = _quantization(tensor.grid)
    return made


def _content(tensor: Tensor) -> bytes:
    values = np.asarray(tensor.values)
    if tensor.type == "int4":
        return pack(values).tobytes()
    return np.ascontiguousarray(values, tensor.type).tobytes()


def _quantization(grid: Grid) -> Any:
    made = schema.QuantizationParametersT()
    made.scale = np.atleast_1d(np.asarray(grid.scale, np.float32))
    made.zeroPoint = np.full(made.scale.shape, grid.zero_point, np.int64)
    made.quantizedDimension = grid.axis
    return made


def _operator(item: Operation, codes: _Codes, numbers: Mapping[int, int]) -> Any:
    made, kind = schema.OperatorT(), OPERATORS[item.kind]
    made.opcodeIndex = codes.number(item.kind, _version(item))
    made.inputs, made.outputs = (
        _numbers(side, numbers) for side in (item.inputs, item.outputs)
    )
    if kind.options is not None:
        made.builtinOptionsType = getattr(schema.BuiltinOptions, kind.options)
        made.builtinOptions = getattr(schema, f"{kind.options}T")()
        for name, value in item.options.items():
            if not hasattr(made.builtinOptions, name):
                raise AttributeError(f"{item.kind} has no option {name!r}")
            if name in _ENUMERATIONS:
                value = getattr(getattr(schema, _ENUMERATIONS[name]), value.upper())
            setattr(made.builtinOptions, name, value)
    return made


def _version(item: Operation) -> int:
    """The least version of an operator that takes its types and does what it is asked to.

    An older runtime refuses a later version by name. It would not see that a convolution is
    grouped, or that a dense layer keeps its input's rank, and compute something else.
    """
    features = next(tensor for tensor in item.inputs if tensor.values is None)
    versions = OPERATORS[item.kind].versions
    if any(tensor.type == "int4" for tensor in item.inputs):
        versions = INT4_VERSIONS[item.kind]
    if features.type not in versions:
        raise ValueError(
            f"the runtime has no {features.type.upper()} kernel of operator {item.kind}, which "
            f"makes {item.outputs[0].name!r}"
        )
    version = versions[features.type]
    if item.kind == "CONV_2D" and features.shape[-1] != item.inputs[1].shape[-1]:
        version = max(version, _GROUPED_VERSION)
    if item.options.get("keepNumDims"):
        version = max(version, _KEEPS_RANK_VERSION)
    if any(item.options.get(f"dilation{axis}Factor", 1) > 1 for axis in "HW"):
        version = max(version, _DILATED_VERSION)
    if item.kind == "TRANSPOSE_CONV" and item.options["fusedActivationFunction"] != "NONE":
        version = max(version, _CLAMPED_TRANSPOSE_VERSION)
    return version


def _numbers(tensors: Sequence[Tensor] | Any, numbers: Mapping[int, int]) -> Array:
    return np.asarray([numbers[id(tensor)] for tensor in tensors], np.int32)
