"""The operators that a file may hold: one entry each, all that is true of them."""

import dataclasses

import numpy as np

from repq_tf.keras_api import Array


@dataclasses.dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        versions: by the type of the first tensor it reads that is no constant, the least
            version that takes it: older runtimes load such a file, too.
        options: the table of its options in the schema; None for none.
        same_scale: whether the runtime wants its features on one grid.
        weighted: whether it has a kernel.
    """

    versions: dict[str, int]
    options: str | None
    same_scale: bool = False
    weighted: bool = False


def _any(
    options: str | None, int8: int = 2, int16: int | None = None, **facts: bool
) -> Operator:
    versions = {"int8": int8}
    if int16 is not None:
        versions["int16"] = int16
    return Operator(versions, options, **facts)


OPERATORS = {
    "ADD": Operator({"int8": 2, "int16": 3, "int32": 1}, "AddOptions"),
    "AVERAGE_POOL_2D": _any("Pool2DOptions", 2, 3, same_scale=True),
    "BATCH_TO_SPACE_ND": _any("BatchToSpaceNDOptions", 2, 4, same_scale=True),
    "CAST": Operator({"int8": 1, "uint8": 1}, "CastOptions"),
    "CONCATENATION": _any("ConcatenationOptions", 2, 3, same_scale=True),
    "CONV_2D": _any("Conv2DOptions", 3, 8, weighted=True),
    "DEPTHWISE_CONV_2D": _any("DepthwiseConv2DOptions", 3, 5, weighted=True),
    "DEPTH_TO_SPACE": _any("DepthToSpaceOptions", 1, same_scale=True),
    "DEQUANTIZE": _any("DequantizeOptions", 2, 3),
    "ELU": _any(None, 1),
    "FULLY_CONNECTED": _any("FullyConnectedOptions", 4, 11, weighted=True),
    "GATHER": Operator({"int32": 2}, "GatherOptions"),
    "GELU": _any("GeluOptions", 2),
    "LEAKY_RELU": _any("LeakyReluOptions", 2, same_scale=True),
    "LOGISTIC": _any(None, 2),
    "MAX_POOL_2D": _any("Pool2DOptions", 2, 3, same_scale=True),
    "MAXIMUM": _any("MaximumMinimumOptions", 2, 4, same_scale=True),
    "MEAN": _any("ReducerOptions", 2, 3),
    "MINIMUM": _any("MaximumMinimumOptions", 2, 4, same_scale=True),
    "MUL": _any("MulOptions", 2),
    "PAD": _any("PadOptions", 2, 3, same_scale=True),
    "QUANTIZE": Operator({"float32": 1, "int8": 2, "uint8": 2, "int16": 2}, "QuantizeOptions"),
    "REDUCE_MAX": _any("ReducerOptions", 2, 3, same_scale=True),
    "RELU": _any(None, 2, 3, same_scale=True),
    "RELU6": _any(None, 2, 3),
    "RESHAPE": _any("ReshapeOptions", 1, 1, same_scale=True),
    "RESIZE_BILINEAR": _any("ResizeBilinearOptions", 3, same_scale=True),
    "RESIZE_NEAREST_NEIGHBOR": _any("ResizeNearestNeighborOptions", 2, same_scale=True),
    "SOFTMAX": _any("SoftmaxOptions", 2),
    "SPLIT": _any("SplitOptions", 2, 4, same_scale=True),
    "STRIDED_SLICE": _any("StridedSliceOptions", 2, 4, same_scale=True),
    "SUB": _any("SubOptions", 2),
    "TANH": _any(None, 2),
    "TRANSPOSE": _any("TransposeOptions", 2, 5, same_scale=True),
}
# Versions that take kernels of 4 bits, by the type of the features.
INT4_VERSIONS = {
    "CONV_2D": {"int8": 7, "int16": 8},
    "FULLY_CONNECTED": {"int8": 10, "int16": 13},
}
WEIGHTED = tuple(kind for kind, operator in OPERATORS.items() if operator.weighted)
SAME_SCALE = tuple(kind for kind, operator in OPERATORS.items() if operator.same_scale)


def kernel_layout(kernel: Array, kind: str) -> tuple[Array, int]:
    """A kernel `(kh, kw, in, out)` as an operator holds it, and the axis of its channels."""
    if kind == "CONV_2D":
        return np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)), 0
    if kind == "DEPTHWISE_CONV_2D":
        return kernel.reshape(1, *kernel.shape[:2], -1), 3
    return np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T), 0
