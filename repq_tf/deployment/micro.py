"""TensorFlow Lite Micro: the file as a C array, and whether the runtime has its operators."""

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from repq_tf.files import file_path, new_file, write_atomically
from repq_tf.tflite import reading
from repq_tf.tflite.pixels import takes_pixels

# The builtin operators that `MicroMutableOpResolver` has an `Add...` for, read in November 2026
# from tensorflow/lite/micro/micro_mutable_op_resolver.h of github.com/tensorflow/tflite-micro.
# The name in the schema is the same but for case and underscores.
_METHODS = """
Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd
BroadcastArgs BroadcastTo CallOnce Cast Ceil Concatenation Conv2D Cos CumSum DepthToSpace
DepthwiseConv2D Dequantize Div Elu EmbeddingLookup Equal Exp ExpandDims Fill Floor FloorDiv
FloorMod FullyConnected Gather GatherNd Greater GreaterEqual HardSwish If L2Normalization
L2Pool2D LeakyRelu Less LessEqual Log LogicalAnd LogicalNot LogicalOr Logistic LogSoftmax
Maximum MaxPool2D Mean Minimum MirrorPad Mul Neg NotEqual Pack Pad PadV2 Prelu Quantize
ReadVariable ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor
Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV Sqrt
Square SquaredDifference Squeeze StridedSlice Sub Sum Svdf Tanh Transpose TransposeConv
UnidirectionalSequenceLSTM Unpack VarHandle While ZerosLike
""".split()
_METHOD_OF = {method.upper(): f"Add{method}" for method in _METHODS}
_BYTES_IN_A_LINE = 12
# Of C11 and C++11, since both compile the header.
_KEYWORDS = frozenset(
    """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
class compl const const_cast constexpr continue decltype default delete do double dynamic_cast
else enum explicit export extern false float for friend goto if inline int long mutable
namespace new noexcept not not_eq nullptr operator or or_eq private protected public register
reinterpret_cast restrict return short signed sizeof static static_assert static_cast struct
switch template this thread_local throw true try typedef typeid typename union unsigned using
virtual void volatile wchar_t while xor xor_eq
""".split()
)


def export_c_array(
    tflite_path: str | os.PathLike[str],
    header_path: str | os.PathLike[str],
    name: str = "g_model",
) -> dict[str, int]:
    """Writes a `.tflite` file as a C header, for microcontrollers without a file system.

    The header has the array `name`, aligned to 16 bytes as TensorFlow Lite Micro wants it, its
    length `name_len`, and in a comment the input, the output and the operators that the
    program has to add to its `MicroMutableOpResolver`. C11 and C++11 compile it. Whether each
    operator takes the file's types is not checked; int8 is what they all take.

    Args:
        tflite_path: the file.
        header_path: the header to write.
        name: of the array, a C identifier and no keyword of C or C++.

    Returns:
        The operators of the file with their counts.

    Raises:
        ValueError: `name` is no identifier, the file is not a TFLite file, TensorFlow Lite
            Micro lacks an operator of it (it is named), or it takes images of any size.

    Example:
        >>> repq_tf.export_c_array("model.tflite", "model.h")
    """
    identifier = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)
    if not identifier or name in _KEYWORDS:
        raise ValueError(f"name must be a C identifier, no keyword. Received: {name!r}")
    tflite_path = file_path(tflite_path, "tflite_path")
    header_path = new_file(header_path, "header_path")
    content, model = reading.read(tflite_path)
    operators = reading.count_operators(model)
    _check(tflite_path, model, operators)
    described = reading.describe(model)
    comment = [
        f"{os.path.basename(tflite_path)}, SHA-256 {hashlib.sha256(content).hexdigest()}",
        *(f"input: {_end(end)}" for end in described["inputs"]),
        *(f"output: {_end(end)}" for end in described["outputs"]),
        f"tflite::MicroMutableOpResolver<{len(operators)}> resolver;",
        *(f"resolver.{_METHOD_OF[_plain(kind)]}();" for kind in sorted(operators)),
    ]
    write_atomically(header_path, _header(content, name, comment).encode())
    return operators


def _plain(kind: str) -> str:
    return kind.replace("_", "")


def _check(path: str, model: Any, operators: Collection[str]) -> None:
    """Refuses what TensorFlow Lite Micro cannot run."""
    missing = sorted(kind for kind in operators if _plain(kind) not in _METHOD_OF)
    if missing:
        raise ValueError(
            f"{path}: TensorFlow Lite Micro has no operator {', '.join(missing)}, so a "
            "microcontroller cannot run the file"
        )
    if takes_pixels(model):
        raise ValueError(
            f"{path} takes pixels, by a CAST of uint8 that TensorFlow Lite Micro does not "
            "have; export it with input_type='int8' and normalise on the device"
        )
    for end in reading.describe(model)["inputs"]:
        if None in end["shape"][1:]:
            raise ValueError(
                f"{path} takes inputs of any size, {end['shape']}, and TensorFlow Lite Micro "
                "fixes the memory for one; export it with input_shape=(h, w, c)"
            )


def _end(end: Mapping[str, Any]) -> str:
    grid = "" if end["scale"] is None else f", scale {end['scale']!r}, zero {end['zero_point']}"
    return f"{end['name']}, {end['type']} {end['shape']}{grid}"


def _header(content: bytes, name: str, comment: Iterable[str]) -> str:
    guard = f"{name.upper()}_H_"
    texts = [f"0x{byte:02x}" for byte in range(256)]
    lines = (
        ", ".join(texts[byte] for byte in content[k : k + _BYTES_IN_A_LINE])
        for k in range(0, len(content), _BYTES_IN_A_LINE)
    )
    body = ",\n    ".join(lines)
    comment = "\n// ".join(comment)
    return f"""\
// {comment}

#ifndef {guard}
#define {guard}

#ifndef __cplusplus
#include <stdalign.h>
#endif

alignas(16) static const unsigned char {name}[] = {{
    {body}
}};
static const unsigned int {name}_len = {len(content)};

#endif  // {guard}
"""
