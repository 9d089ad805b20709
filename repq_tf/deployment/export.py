"""`export_tflite`: the integer file; the only module that calls a converter."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from repq_tf.deployment.pixels import pixel_table
from repq_tf.deployment.trace import Trace, end_names
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import Graph, pairs, read_graph, read_native
from repq_tf.keras_api import Shape, Tensor, backend, keras
from repq_tf.layers import Quantize
from repq_tf.quantization.containers import check_container, check_four_bits, four_bit_layers
from repq_tf.quantization.grids import known_name
from repq_tf.reparameterization.merge import merge


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    input_type: str | None = None,
    output_type: str | None = None,
    container: str = "int8",
    pixels: Any = None,
    input_shape: Sequence[int] | None = None,
) -> dict[str, int]:
    """Writes a quantized model as an all-integer `.tflite` file.

    The file holds one convolution for each block, with the weights, the biases and the
    scales that the model computes with in inference: grids of 2 to 8 bits lie
    inside int8 tensors, activations of 16 bits are int16. Tensors are called after the
    Keras layers that make them, and the ends in its signature as the model's.

    Args:
        model: what `repq_tf.quantize` returned, trained or not; or what TFMOT trained with
            `repq_tf.tfmot`.
        path: the file to write.
        input_type: "int8", "uint8" or "float32"; "int16" or "float32" with activations of
            16 bits: what the caller of the file passes. int8 and int16 must lie on the model's
            input grid. Default: "int8", or "int16".
        output_type: likewise, what it gets.
        container: of kernels of at most 4 bits: "int8", or "int4" to store the same
            integers two a byte. The file is about half as large; its convolutions are
            slower and round as `repq_tf.with_container(model, "int4")` does. Refused without
            such kernels.
        pixels: for a uint8 file that takes images as cameras give them, the normalisation that
            the model was trained with: `(mean, std)` for `(pixel - mean) / std`, numbers or
            sequences with one for each channel; or the function that made float images of
            uint8 ones. The file looks up what the model's input quantizer makes of each
            pixel value, so that it is exact.
        input_shape: `(height, width, channels)` of the file's images, for a model of any
            size. Default: the model's. Of sizes that it leaves open the file has 1, and takes
            all: `interpreter.resize_tensor_input(index, (1, height, width, channels))` before
            the first `allocate_tensors()`, since layers need not fit an image of 1x1.

    Returns:
        The operators of the file with their counts.

    Raises:
        ValueError: the model has layers in floating point (they are named), or
            an argument is bad.
        FileNotFoundError: the folder of `path` does not exist.
        RuntimeError: Keras does not run on TensorFlow.

    Example:
        >>> repq_tf.export_tflite(qat, "model.tflite")
        {'CONV_2D': 20, 'ADD': 8, ...}
        >>> repq_tf.export_tflite(qat, "p.tflite", input_type="uint8", pixels=(127.5, 127.5))
        {'CAST': 1, 'GATHER': 1, 'CONV_2D': 20, 'ADD': 8, ...}
    """
    from repq_tf.deployment import editing, ends, flatbuffer, storage  # LiteRT's schema

    check_container(container)
    if pixels is not None and input_type != "uint8":
        raise ValueError(
            f"pixels goes with input_type='uint8'. Received: input_type={input_type!r}"
        )
    _need_tensorflow("export_tflite")
    path = new_file(path)
    graph = read_native(model)
    if container == "int4":
        check_four_bits(graph)
    trace = Trace(graph, input_shape)
    bits = trace.input_layer.bits
    input_type = ends.check_type("input_type", input_type, bits)
    output_type = ends.check_type("output_type", output_type, bits)
    table = None
    if pixels is not None:
        table = pixel_table(trace.input_layer, pixels, trace.input_shape[-1])
    elif input_type != "int8" and bits < 8:
        raise ValueError(
            f"input_type must be 'int8', or 'uint8' with pixels, for a model input of "
            f"{bits} bits: the file has no clamp to its grid. Received: {input_type!r}"
        )
    content = _convert(trace, trace.input_shape, integer=True)
    content = editing.set_grids(content, trace.input_grid, trace.grids, trace.outputs)
    if bits == 16:
        content = storage.widen(content)
    else:
        content = editing.clamp_in_rescale(content)
    content = ends.set_end_types(content, input_type, output_type, table)
    content = ends.set_signature(content, trace.names)
    if container == "int4":
        content = storage.store_int4(content, _four_bit_layers(graph))
    operators = flatbuffer.integer_operators(content)
    write_atomically(path, content)
    return operators


def _four_bit_layers(graph: Graph) -> list[str]:
    names, left = (
        [known_name(graph, graph.nodes[name]) for name in found]
        for found in four_bit_layers(graph)
    )
    if left:
        warnings.warn(
            f"layers {left} stay in the int8 container: a channel with a negative batch-norm "
            "gain has the weight -8, which is 8 in the file and does not fit 4 bits",
            stacklevel=3,
        )
    return names


def export_tflite_float(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes a float model, merged, as a float32 `.tflite` file, for comparison.

    Args:
        model: a float model.
        path: the file to write.

    Raises:
        ValueError: the model is quantized.
        FileNotFoundError: the folder of `path` does not exist.
        RuntimeError: Keras does not run on TensorFlow.
    """
    from repq_tf.deployment import ends  # LiteRT's schema

    _need_tensorflow("export_tflite_float")
    path = new_file(path)
    for node in read_native(model).nodes.values():
        if isinstance(node.layer, Quantize) or getattr(node.layer, "weight_quantizer", None):
            raise ValueError(
                "model must be a float model; repq_tf.export_tflite writes quantized ones. "
                f"Received: {model.name!r}, whose layer {node.name!r} is quantized"
            )
    merged = merge(model)
    graph = read_graph(merged)
    names = end_names(graph)
    _, *keys = names

    def run(x: Tensor) -> dict[str, Tensor]:
        outputs = pairs(graph.outputs, merged(x, training=False))
        return {key: y for key, (_, y) in zip(keys, outputs, strict=True)}

    content = _convert(run, merged.input_shape[1:], integer=False)
    write_atomically(path, ends.set_signature(content, names))


def _need_tensorflow(caller: str) -> None:
    if backend() != "tensorflow":
        raise RuntimeError(
            f"{caller} needs TensorFlow's converter; load the saved model in a process with "
            f"KERAS_BACKEND=tensorflow. Received: KERAS_BACKEND={backend()}"
        )


def _convert(
    function: Callable[[Tensor], dict[str, Tensor]], shape: Shape, integer: bool
) -> bytes:
    """Runs the converter on `function(x) -> {key: tensor}`."""
    import tensorflow as tf

    module = tf.Module()
    signature = [tf.TensorSpec([None, *shape], tf.float32, name="input")]
    module.run = tf.function(function, input_signature=signature, autograph=False)
    concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if integer:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8
    # It warns of float outputs whenever there are several; the result is checked instead.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return converter.convert()
    finally:
        logging.set_verbosity(verbosity)
