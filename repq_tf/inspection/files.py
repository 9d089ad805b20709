"""`summary` of a file: what its operators are and cost."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from repq_tf.files import file_path
from repq_tf.inspection.costs import BYTES_OF_BIAS, FLOAT_BITS
from repq_tf.inspection.layer_summary import LayerSummary, Summary
from repq_tf.keras_api import Array, Shape
from repq_tf.onnx import reading as onnx_reading
from repq_tf.tflite import reading
from repq_tf.tflite.operators import WEIGHTED

_WIDTHS = {"INT4": 4, "INT8": 8, "UINT8": 8, "INT16": 16}
_BYTE = 8


def summary_of_file(path: str | os.PathLike[str]) -> Summary:
    """The `Summary` of a `.tflite` or `.onnx` file: a row for each of its operators.

    Args:
        path: of the file.

    Raises:
        ValueError: it is none of the two, or ONNX, and the package `onnx` is not installed.
    """
    if not os.path.exists(path):
        raise ValueError(
            "model must be a Functional or Sequential model, or the path of a .tflite or .onnx "
            f"file. Received: {path!r}, which is not there"
        )
    path = file_path(path, "model")
    rows = _of_tflite(path) if reading.is_tflite(path) else _of_onnx(path)
    return Summary(os.path.basename(path), tuple(rows))


def _of_tflite(path: str) -> Iterator[LayerSummary]:
    _, model = reading.read(path)
    graph = model.subgraphs[0]

    def bits(tensor: Any) -> int | None:
        return _WIDTHS.get(reading.type_name(tensor))

    for operator in graph.operators:
        kind, y = reading.operator_name(model, operator), graph.tensors[operator.outputs[0]]
        inputs = [graph.tensors[int(index)] for index in operator.inputs if index >= 0]
        weights: dict[str, Any] = {}
        if kind in WEIGHTED:
            _, kernel, *bias = inputs
            scale = None if kernel.quantization is None else kernel.quantization.scale
            steps = None if scale is None or not len(scale) else np.asarray(scale)
            values, width = reading.tensor_data(model, kernel), bits(kernel)
            biases = math.prod(bias[0].shape) if bias else 0
            weights = _weights(values, width, biases, steps, reading.shape(y))
        yield _row(
            y.name.decode(),
            kind,
            reading.shape(y),
            input_bits=bits(inputs[0]),
            output_bits=bits(y),
            output_step=reading.scale_and_zero(y)[0] or None,
            **weights,
        )


def _of_onnx(path: str) -> Iterator[LayerSummary]:
    _, model = onnx_reading.read(path)
    graph = onnx_reading.Graph(model)
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        (name, *_), shape = node.output, graph.shape(node.output[0])
        reads, makes = graph.source(node.input[0]), graph.target(name)
        step = graph.constant(makes.input[1]) if makes else None
        weights: dict[str, Any] = {}
        if node.op_type in ("Conv", "Gemm"):
            (values, steps, bits), *bias = map(graph.weights, node.input[1:])
            biases = sum(0 if found is None else found.size for found, _, _ in bias)
            if values is not None:
                weights = _weights(values, bits, biases, steps, shape)
        yield _row(
            node.name,
            node.op_type,
            shape,
            input_bits=graph.bits(reads.input[0] if reads else node.input[0]),
            output_bits=graph.bits(makes.output[0] if makes else name),
            output_step=None if step is None else float(step),
            **weights,
        )


def _weights(
    kernel: Array, bits: int | None, biases: int, steps: Array | None, shape: Shape
) -> dict[str, Any]:
    """What a kernel costs, applied at each pixel of an output's shape."""
    places = shape[1:-1]
    size = -(-kernel.size * (bits or FLOAT_BITS) // _BYTE)
    return {
        "weight_bits": bits,
        "bits_a_weight": None if bits is None else float(bits),
        "deployed": kernel.size + biases,
        "macs": None if None in places else kernel.size * math.prod(places),
        "size": size + biases * BYTES_OF_BIAS,
        "weight_steps": None if steps is None else (float(steps.min()), float(steps.max())),
    }


def _row(name: str, kind: str, shape: Shape, **known: Any) -> LayerSummary:
    nothing = {"weight_bits": None, "bits_a_weight": None, "deployed": 0, "macs": 0, "size": 0}
    rest = {"trained": 0, "weight_entropy": None, "weight_steps": None}
    return LayerSummary(name=name, kind=kind, shape=shape[1:], **{**nothing, **rest, **known})
