"""`export_tflite`: a quantized model as an integer file."""

import collections
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.arithmetic import in_64_bits
from repq_tf.deployment.ends import Ends, check_type
from repq_tf.deployment.lowering import IntegerLowering, Source, by_input
from repq_tf.deployment.operators import LOWERINGS
from repq_tf.deployment.pixels import pixel_table
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import Graph, read_native
from repq_tf.keras_api import Array, Layer, Tensor, keras, ops
from repq_tf.quantization.containers import check_container, check_four_bits, four_bit_layers
from repq_tf.quantization.grids import known_name
from repq_tf.tflite.writer import write
from repq_tf.user_warning import warn_user


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    input_type: str | dict[str, str] | None = None,
    output_type: str | None = None,
    container: str = "int8",
    pixels: Any = None,
    input_shape: Sequence[int] | dict[str, Sequence[int]] | None = None,
) -> dict[str, int]:
    """Writes a quantized model as an all-integer `.tflite` file.

    The file holds one convolution for each block, with the weights, the biases and the
    scales that the model computes with in inference: grids of 2 to 8 bits lie
    inside int8 tensors, activations of 16 bits are int16. Tensors are called after the
    Keras layers that make them, and the ends in its signature as the model's: the keys of
    a dict that it is called with or returns, and the names of the layers elsewhere.

    Args:
        model: what `repq_tf.quantize` returned, trained or not; or what TFMOT trained with
            `repq_tf.tfmot`.
        path: the file to write.
        input_type: "int8", "uint8" or "float32"; "int16" or "float32" with activations of
            16 bits: what the caller of the file passes. int8 and int16 must lie on the model's
            input grid. Of a model that prepares its images itself, by Rescaling,
            Normalization or arithmetic with constants, that grid is the one behind these, and
            "uint8" takes pixels as the model does, exactly; "float32" is refused. Default:
            "int8", or "int16". For a model with several inputs, `input_type`, `pixels` and
            `input_shape` can be dicts by their names.
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

    Example:
        >>> repq_tf.export_tflite(qat, "model.tflite")
        {'CONV_2D': 20, 'ADD': 8, ...}
        >>> repq_tf.export_tflite(qat, "p.tflite", input_type="uint8", pixels=(127.5, 127.5))
        {'CAST': 1, 'GATHER': 1, 'CONV_2D': 20, 'ADD': 8, ...}
    """
    check_container(container)
    path = new_file(path)
    graph = read_native(model)
    with in_64_bits():
        packed = four_bit_nodes(graph) if container == "int4" else ()
    lowering = IntegerLowering(graph, input_shape, packed, LOWERINGS)
    output_type = check_type("output_type", output_type, lowering.bits)
    types = by_input("input_type", input_type, graph)
    tables = by_input("pixels", pixels, graph)
    ends = {
        name: _ends(source, types[name], tables[name], output_type)
        for name, source in lowering.inputs.items()
    }
    with in_64_bits():
        program = lowering.run(ends)
    write_atomically(path, write(program))
    return dict(collections.Counter(item.kind for item in program.operations))


def _ends(source: Source, input_type: str | None, pixels: Any, output_type: str) -> Ends:
    """How an input's values get into the file; the arguments of `export_tflite` are checked."""
    if pixels is not None and input_type != "uint8":
        raise ValueError(
            f"pixels goes with input_type='uint8'. Received: input_type={input_type!r}"
        )
    bits = source.layer.bits
    input_type = check_type("input_type", input_type, bits)
    if source.maps:
        _check_maps(source.maps, input_type, pixels)
        if input_type == "uint8":
            pixels = functools.partial(_mapped, source.maps)
    if pixels is not None:
        table = pixel_table(source.layer, pixels, source.shape[-1])
        return Ends(input_type, output_type, table)
    if input_type != "int8" and bits < 8:
        raise ValueError(
            f"input_type must be 'int8', or 'uint8' with pixels, for a model input of "
            f"{bits} bits: the file has no clamp to its grid. Received: {input_type!r}"
        )
    return Ends(input_type, output_type)


def _check_maps(maps: Sequence[Layer], input_type: str, pixels: Any) -> None:
    """Refuses ends that the file of a model which prepares its images cannot have."""
    names = [layer.name for layer in maps]
    if pixels is not None:
        raise ValueError(
            f"pixels must be None for a model that prepares its images itself, in {names}: "
            f"input_type='uint8' takes pixels as the model does. Received: {pixels!r}"
        )
    if input_type == "float32":
        raise ValueError(
            f"input_type must be 'uint8' (pixels as the model takes them) or 'int8' (levels of "
            f"the grid behind {names[-1]!r}) for a model that prepares its images itself, in "
            f"{names}: the file's QUANTIZE would round what they make of other numbers "
            f"otherwise. Received: {input_type!r}"
        )


def _mapped(maps: Sequence[Layer], images: Array) -> Tensor:
    """What the layers that prepare a model's input make of pixels."""
    values = ops.convert_to_tensor(np.asarray(images, np.float32))
    for layer in maps:
        values = layer(values)
    return values


def four_bit_nodes(graph: Graph) -> list[str]:
    """The names of the nodes whose kernels are stored in 4 bits.

    Warns of those of at most 4 bits that are not.

    Raises:
        ValueError: there are none.
    """
    check_four_bits(graph)
    found, left = four_bit_layers(graph)
    if left:
        names = [known_name(graph, graph.nodes[name]) for name in left]
        warn_user(
            f"layers {names} stay in the int8 container: a channel with a negative batch-norm "
            "gain has the weight -8, which is 8 in the file and does not fit 4 bits"
        )
    return found
