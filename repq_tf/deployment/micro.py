"""TensorFlow Lite Micro: the file as a C array, and whether the runtime has its operators."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from repq_tf.files import file_path, new_file, write_atomically
from repq_tf.tflite import reading
from repq_tf.tflite.micro import arena_size
from repq_tf.tflite.operators import INT4_ON_MICRO, OPERATORS
from repq_tf.tflite.pixels import takes_pixels

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
    length `name_len`, and in a comment the input, the output, the operators that the program
    has to add to its `MicroMutableOpResolver`, and the tensor arena that it needs: measured
    where the package `tflite-micro` is installed (on a device of 32 bits it is a little
    smaller), else what the features alone take. C11 and C++11 compile it.

    Args:
        tflite_path: the file.
        header_path: the header to write.
        name: of the array, a C identifier and no keyword of C or C++.

    Returns:
        The operators of the file with their counts.

    Raises:
        ValueError: `name` is no identifier, the file is not a TFLite file, TensorFlow Lite
            Micro lacks an operator of it or a kernel for its types (they are named), or it
            takes images of any size.

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
    _check(tflite_path, model)
    described = reading.describe(model)
    comment = [
        f"{os.path.basename(tflite_path)}, SHA-256 {hashlib.sha256(content).hexdigest()}",
        *(f"input: {_end(end)}" for end in described["inputs"]),
        *(f"output: {_end(end)}" for end in described["outputs"]),
        f"tflite::MicroMutableOpResolver<{len(operators)}> resolver;",
        *(f"resolver.Add{OPERATORS[kind].micro}();" for kind in sorted(operators)),
        arena_size(content, model),
    ]
    write_atomically(header_path, _header(content, name, comment).encode())
    return operators


def _check(path: str, model: Any) -> None:
    """Refuses what TensorFlow Lite Micro cannot run."""
    if any(takes_pixels(model, place) for place in range(len(model.subgraphs[0].inputs))):
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
    lacks = sorted({text for text in map(_lack, _used(model)) if text is not None})
    if lacks:
        raise ValueError(
            f"{path}: TensorFlow Lite Micro has no {', no '.join(lacks)}, so a microcontroller "
            "cannot run the file"
        )


def _used(model: Any) -> Iterator[tuple[str, str, bool]]:
    """Yields each operator, the type of its features, and whether its kernel has 4 bits."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        types = [reading.type_name(graph.tensors[int(i)]) for i in operator.inputs if i >= 0]
        (first, *_) = reading.features(model, operator)
        kind = reading.type_name(graph.tensors[first]).lower()
        yield reading.operator_name(model, operator), kind, "INT4" in types


def _lack(used: tuple[str, str, bool]) -> str | None:
    """What the runtime lacks of an operator, or None."""
    kind, features, packed = used
    if kind not in OPERATORS or OPERATORS[kind].micro is None:
        return f"operator {kind}"
    if packed and features not in INT4_ON_MICRO.get(kind, ()):
        return f"{kind} of {features} with kernels of 4 bits"
    return None if features in OPERATORS[kind].types_on_micro else f"{kind} of {features}"


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
