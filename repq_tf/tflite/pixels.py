"""Files that take pixels: the table in which they look their input up."""

from typing import Any

import numpy as np

from repq_tf.arithmetic import container_top, input_levels
from repq_tf.keras_api import Array
from repq_tf.tflite.reading import operator_name, tensor_data

PIXELS = 256


def takes_pixels(model: Any) -> bool:
    """Whether a parsed file looks its input up in a table."""
    return _lookup(model) is not None


def pixel_levels(model: Any) -> tuple[Array, float, int]:
    """The table of a parsed file that takes pixels, without its zero point, and its grid.

    Returns:
        Integers `(channels or 1, 256)`, the scale, and the largest integer of the grid.
    """
    table = model.subgraphs[0].tensors[_lookup(model).inputs[0]]
    scale, zero = table.quantization.scale[0], int(table.quantization.zeroPoint[0])
    levels = tensor_data(model, table).reshape(-1, PIXELS).astype(int) - zero
    return levels, scale, container_top(8) - zero


def pixels_of(model: Any, values: Array, exactly: bool = False) -> Array:
    """The pixels that a file makes some values of, or the nearest ones.

    Args:
        model: a parsed file that takes pixels.
        values: what the network would be given, `(..., channels)`.
        exactly: whether to refuse values that are those of no pixel.

    Returns:
        uint8 pixels.

    Raises:
        ValueError: `exactly`, and a value is that of no pixel.
    """
    rows, scale, top = pixel_levels(model)
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
                "images must be pixels, normalised as the file does it. Received: "
                f"{np.count_nonzero(wrong)} of {wrong.size} values of channel {channel} that "
                "no pixel becomes"
            )
    return found


def _lookup(model: Any) -> Any:
    """The GATHER behind a file's input of numbers without a scale, or None."""
    graph = model.subgraphs[0]
    grid = graph.tensors[int(graph.inputs[0])].quantization
    if grid is not None and grid.scale is not None and len(grid.scale):
        return None  # a table behind it is that of a function
    reader = {int(i): operator for operator in graph.operators for i in operator.inputs}
    operator = reader[int(graph.inputs[0])]
    if operator_name(model, operator) != "CAST":
        return None
    while operator_name(model, operator) != "GATHER":
        operator = reader[int(operator.outputs[0])]
    return operator
