"""`export_onnx`: a quantized model as an ONNX file, for engines that read no `.tflite`."""

import collections
import importlib.util
import os
from collections.abc import Sequence

from repq_tf.arithmetic import in_64_bits
from repq_tf.deployment.ends import Ends
from repq_tf.deployment.export import four_bit_nodes
from repq_tf.deployment.lowering import IntegerLowering
from repq_tf.deployment.operators import LOWERINGS
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import read_native
from repq_tf.keras_api import keras
from repq_tf.onnx.writer import write
from repq_tf.quantization.containers import check_container


def export_onnx(
    model: keras.Model,
    path: str | os.PathLike[str],
    input_shape: Sequence[int] | dict[str, Sequence[int]] | None = None,
    container: str = "int8",
) -> dict[str, int]:
    """Writes a quantized model as an ONNX file of QuantizeLinear and DequantizeLinear pairs.

    The integers, scales and zero points are those of `export_tflite`'s int8 file (features lie
    128 higher, as uint8), in the opset 21. It takes and gives float32 in the model's own
    layout, under the model's names. Engines that know the pattern (ONNX Runtime, OpenVINO)
    compute convolutions in integers; each rounds in its own way, so that a few values of a
    tensor are a level away from the model's. Of pixels the file divides by the step, and the
    model multiplies by its reciprocal: an image's value half way between two levels can become
    the other one.

    Args:
        model: what `repq_tf.quantize` returned, trained or not; of at most 8 bits.
        path: the file to write.
        input_shape: `(height, width, channels)`, for a model of any size; of several
            inputs, a dict by their names. Default: the model's.
        container: of kernels of at most 4 bits: "int8", or "int4" to store the same integers
            two a byte, for half a file. Engines then compute such convolutions in floating
            point.

    Returns:
        The nodes of the file with their counts.

    Raises:
        ValueError: the model has layers in floating point, activations of 16 bits, a dense
            layer on other tensors than vectors and images, or an argument is bad.
        FileNotFoundError: the folder of `path` does not exist.
        ModuleNotFoundError: the package `onnx` is not installed.

    Example:
        >>> repq_tf.export_onnx(qat, "model.onnx")  # pip install "repq_tf[onnx]"
    """
    check_container(container)
    path = new_file(path)
    if importlib.util.find_spec("onnx") is None:
        raise ModuleNotFoundError(
            'export_onnx needs the package onnx; pip install "repq_tf[onnx]"'
        )
    graph = read_native(model)
    with in_64_bits():
        packed = four_bit_nodes(graph) if container == "int4" else ()
    lowering = IntegerLowering(graph, input_shape, packed, LOWERINGS)
    if lowering.bits == 16:
        raise ValueError(
            "model must have activations of at most 8 bits for ONNX. Received: "
            f"{model.name!r}, of 16 bits"
        )
    with in_64_bits():
        program = lowering.run(dict.fromkeys(lowering.inputs, Ends("int8", "int8")))
        lowest = {
            name: source.layer.activation_quantizer.low
            for name, source in lowering.inputs.items()
        }
        made = write(program, model.name, lowest)
    write_atomically(path, made.SerializeToString())
    return dict(collections.Counter(node.op_type for node in made.graph.node))
