"""Files that take pixels: the table in which they look their input up."""

from typing import Any

import numpy as np

from repq_tf.arithmetic import container_top, input_levels
from repq_tf.keras_api import Array
from repq_tf.tflite.reading import operator_name, tensor_data, type_name

PIXELS = 256


def takes_pixels(model: Any, position: int = 0) -> bool:
    """Whether a parsed file looks an input up in a table.

    Args:
        model: the file.
        position: of the input among the file's.
    """
    return _lookup(model, position) is not None


def pixel_levels(model: Any, position: int = 0) -> tuple[Array, float, int]:
    """The table of a parsed file that takes pixels, without its zero point, and its grid.

    Args:
        model: the file.
        position: of the input among the file's.

    Returns:
        Integers `(channels or 1, 256)`, the scale, and the largest integer of the grid.
    """
    table = model.subgraphs[0].tensors[_lookup(model, position).inputs[0]]
    scale, zero = table.quantization.scale[0], int(table.quantization.zeroPoint[0])
    levels = tensor_data(model, table).reshape(-1, PIXELS).astype(int) - zero
    return levels, scale, container_top(8) - zero


def pixels_of(model: Any, values: Array, exactly: bool = False, position: int = 0) -> Array:
    """The pixels that a file makes some values of, or the nearest ones.

    Args:
        model: a parsed file that takes pixels.
        values: what the network would be given, `(..., channels)`.
        exactly: whether to refuse values that are those of no pixel.
        position: of the input among the file's.

    Returns:
        uint8 pixels.

    Raises:
        ValueError: `exactly`, and a value is that of no pixel.
    """
    rows, scale, top = pixel_levels(model, position)
    rows = np.broadcast_to(rows, (values.shape[-1], PIXELS))
    levels = input_levels(values, scale, -top - 1, top)  # an unsigned grid has its lowest at 0
    found = np.empty(levels.shape, np.uint8)
    for channel, row in enumerate(rows):
        order = np.argsort(row, kind="stable")
        middles = (row[order][1:] + row[order][:-1]) / 2
        found[..., channel] = order[np.searchsorted(middles, levels[..., channel])]
        wrong = row[found[..., channel]] != levels[..., channel]
        if exactly and wrong.any():
            raise ValueError(
                "images must be pixels, normalised as the file does it. Resized ones have "
                "fractions: round them, and normalise them then. Received: "
                f"{np.count_nonzero(wrong)} of {wrong.size} values of channel {channel} that "
                "no pixel becomes"
            )
    return found


def _lookup(model: Any, position: int) -> Any:
    """The GATHER behind a file's input of pixels, or None."""
    graph = model.subgraphs[0]
    reader = {int(i): operator for operator in graph.operators for i in operator.inputs}
    first = int(graph.inputs[position])
    operator = reader[first]
    # A table behind an int8 input is a function of the network's own.
    if operator_name(model, operator) != "CAST" or type_name(graph.tensors[first]) != "UINT8":
        return None
    while operator_name(model, operator) != "GATHER":
        operator = reader[int(operator.outputs[0])]
    return operator
