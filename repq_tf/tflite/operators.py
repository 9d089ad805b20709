"""The operators that a file may hold: one entry each, all that is true of them."""

import dataclasses

import numpy as np

from repq_tf.keras_api import Array


@dataclasses.dataclass(frozen=True)
class Operator:
    """What is known of an operator.

    Attributes:
        options: the table of its options in the schema; None for none.
        versions: by the type of the first tensor it reads that is no constant, the least
            version that takes it: older runtimes load such a file, too.
        micro: what TensorFlow Lite Micro's resolver calls it, behind "Add"; None if that
            runtime lacks it.
        micro_types: those of `versions` that its kernel there takes; None for all.
        same_scale: whether the runtime wants its features on one grid.
        weighted: whether it has a kernel.
        fast: whether XNNPACK runs it on int8.
        pointwise: whether it computes each value from those of one place of an image.
    """

    options: str | None
    versions: dict[str, int]
    micro: str | None = None
    micro_types: tuple[str, ...] | None = None
    same_scale: bool = False
    weighted: bool = False
    fast: bool = False
    pointwise: bool = False

    @property
    def types_on_micro(self) -> tuple[str, ...]:
        """The types of features that it takes in TensorFlow Lite Micro."""
        if self.micro is None:
            return ()
        return tuple(self.versions) if self.micro_types is None else self.micro_types


def _features(float32: int, int8: int, int16: int | None = None) -> dict[str, int]:
    """Versions of an operator on features."""
    versions = {"float32": float32, "int8": int8}
    return versions if int16 is None else {**versions, "int16": int16}


def _float(options: str | None, micro: str | None = None, pointwise: bool = True) -> Operator:
    """An operator of float files alone."""
    return Operator(options, {"float32": 1}, micro, pointwise=pointwise)


OPERATORS = {
    "ABS": _float("AbsOptions", "Abs"),
    "ADD": Operator(
        "AddOptions",
        {**_features(1, 2, 3), "int32": 1},
        "Add",
        fast=True,
        pointwise=True,
    ),
    "AVERAGE_POOL_2D": Operator(
        "Pool2DOptions", _features(1, 2, 3), "AveragePool2D", same_scale=True
    ),
    "BATCH_TO_SPACE_ND": Operator(
        "BatchToSpaceNDOptions",
        _features(1, 2, 4),
        "BatchToSpaceNd",
        ("float32", "int8"),
        same_scale=True,
    ),
    "CAST": Operator("CastOptions", {"int8": 1, "uint8": 1}, "Cast", ("int8",), pointwise=True),
    "CONCATENATION": Operator(
        "ConcatenationOptions", _features(1, 2, 3), "Concatenation", same_scale=True, fast=True
    ),
    "CONV_2D": Operator(
        "Conv2DOptions", _features(1, 3, 8), "Conv2D", weighted=True, fast=True
    ),
    "DEPTHWISE_CONV_2D": Operator(
        "DepthwiseConv2DOptions",
        _features(1, 3, 5),
        "DepthwiseConv2D",
        weighted=True,
        fast=True,
    ),
    "DEPTH_TO_SPACE": Operator(
        "DepthToSpaceOptions", _features(1, 1), "DepthToSpace", same_scale=True, fast=True
    ),
    "DEQUANTIZE": Operator(
        "DequantizeOptions", {"int8": 2, "int16": 3}, "Dequantize", fast=True, pointwise=True
    ),
    "DIV": _float("DivOptions", "Div"),
    "ELU": Operator(None, _features(1, 1), "Elu", pointwise=True),
    "EXP": _float("ExpOptions", "Exp"),
    "FULLY_CONNECTED": Operator(
        "FullyConnectedOptions",
        _features(1, 4, 11),
        "FullyConnected",
        weighted=True,
        fast=True,
    ),
    "GATHER": Operator("GatherOptions", {"int32": 2}, "Gather"),
    "GELU": Operator("GeluOptions", _features(1, 2), pointwise=True),
    "HARD_SWISH": _float("HardSwishOptions", "HardSwish"),
    "L2_NORMALIZATION": Operator("L2NormOptions", _features(1, 2), "L2Normalization"),
    "LEAKY_RELU": Operator(
        "LeakyReluOptions",
        _features(1, 2),
        "LeakyRelu",
        same_scale=True,
        fast=True,
        pointwise=True,
    ),
    "LOG": _float(None, "Log"),
    "LOGISTIC": Operator(None, _features(1, 2), "Logistic", fast=True, pointwise=True),
    "LOG_SOFTMAX": _float("LogSoftmaxOptions", "LogSoftmax", pointwise=False),
    "MAX_POOL_2D": Operator(
        "Pool2DOptions", _features(1, 2, 3), "MaxPool2D", same_scale=True, fast=True
    ),
    "MAXIMUM": Operator(
        "MaximumMinimumOptions",
        _features(1, 2, 4),
        "Maximum",
        same_scale=True,
        pointwise=True,
    ),
    "MEAN": Operator("ReducerOptions", _features(1, 2, 3), "Mean", fast=True),
    "MINIMUM": Operator(
        "MaximumMinimumOptions", _features(1, 2, 4), "Minimum", same_scale=True, pointwise=True
    ),
    "MUL": Operator(
        "MulOptions",
        {**_features(1, 2), "int32": 1},
        "Mul",
        ("float32", "int8"),
        fast=True,
        pointwise=True,
    ),
    "NEG": _float("NegOptions", "Neg"),
    "PACK": Operator("PackOptions", {"int32": 1}, "Pack"),
    "PAD": Operator("PadOptions", _features(1, 2, 3), "Pad", same_scale=True, fast=True),
    "PRELU": _float(None, "Prelu"),
    "QUANTIZE": Operator(
        "QuantizeOptions",
        {"float32": 1, "int8": 2, "uint8": 2, "int16": 2},
        "Quantize",
        fast=True,
        pointwise=True,
    ),
    "REDUCE_MAX": Operator(
        "ReducerOptions",
        _features(1, 2, 3),
        "ReduceMax",
        ("float32", "int8"),
        same_scale=True,
        fast=True,
    ),
    "RELU": Operator(None, _features(1, 2, 3), "Relu", same_scale=True, pointwise=True),
    "RELU6": Operator(None, _features(1, 2, 3), "Relu6", pointwise=True),
    "RELU_N1_TO_1": _float(None),
    "RESHAPE": Operator(
        "ReshapeOptions", _features(1, 1, 1), "Reshape", same_scale=True, fast=True
    ),
    "RESIZE_BILINEAR": Operator(
        "ResizeBilinearOptions",
        _features(3, 3),
        "ResizeBilinear",
        same_scale=True,
        fast=True,
    ),
    "RESIZE_NEAREST_NEIGHBOR": Operator(
        "ResizeNearestNeighborOptions",
        _features(1, 2),
        "ResizeNearestNeighbor",
        same_scale=True,
    ),
    "RSQRT": _float(None, "Rsqrt"),
    "SHAPE": Operator("ShapeOptions", {"float32": 1}, "Shape"),
    "SOFTMAX": Operator("SoftmaxOptions", _features(1, 2), "Softmax"),
    "SPLIT": Operator("SplitOptions", _features(1, 2, 4), "Split", same_scale=True),
    "SQUARED_DIFFERENCE": _float("SquaredDifferenceOptions", "SquaredDifference"),
    "STRIDED_SLICE": Operator(
        "StridedSliceOptions",
        {**_features(1, 2, 4), "int32": 1},
        "StridedSlice",
        ("float32", "int8", "int32"),
        same_scale=True,
    ),
    "SUB": Operator("SubOptions", _features(1, 2), "Sub", fast=True, pointwise=True),
    "TANH": Operator(None, _features(1, 2), "Tanh", fast=True, pointwise=True),
    "TRANSPOSE": Operator("TransposeOptions", _features(1, 2, 5), "Transpose", same_scale=True),
    # It reads the shape of its output first.
    "TRANSPOSE_CONV": Operator("TransposeConvOptions", {"int32": 3}, "TransposeConv"),
}
# Versions that take kernels of 4 bits, by the type of the features.
INT4_VERSIONS = {
    "CONV_2D": {"int8": 7, "int16": 8},
    "FULLY_CONNECTED": {"int8": 10, "int16": 13},
}
# Of those, what TensorFlow Lite Micro runs.
INT4_ON_MICRO = {"CONV_2D": ("int8",)}
WEIGHTED = tuple(kind for kind, operator in OPERATORS.items() if operator.weighted)
SAME_SCALE = tuple(kind for kind, operator in OPERATORS.items() if operator.same_scale)


def kernel_layout(kernel: Array, kind: str) -> tuple[Array, int]:
    """A kernel `(kh, kw, in, out)` as an operator holds it, and the axis of its channels."""
    if kind == "CONV_2D":
        return np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)), 0
    if kind == "DEPTHWISE_CONV_2D":
        return kernel.reshape(1, *kernel.shape[:2], -1), 3
    return np.ascontiguousarray(kernel.reshape(-1, kernel.shape[-1]).T), 0
