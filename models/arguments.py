"""Checks of the arguments of networks."""

import inspect
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from repq_tf.arguments import positive
from repq_tf.keras_api import Shape
from repq_tf.layers import ReparamConv

# What a network decides for its blocks; every other option of a block is the user's.
_DECIDED = {
    *("self", "filters", "kernel_size", "strides", "padding", "groups", "activation"),
    "dilation_rate",
    *("options", "kwargs"),
}


def check_input_shape(shape: Sequence[int | None], unknown_size: bool = False) -> Shape:
    """`(height, width, channels)` as a tuple, or a ValueError that says what is wrong.

    Args:
        shape: what the user gave.
        unknown_size: whether height and width may be None.
    """
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    if len(sizes) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels) of one image, without the batch. "
            f"Received: {shape!r}"
        )
    *spatial, channels = sizes
    argument = f"each size of input_shape {sizes}"
    spatial = [
        None if size is None and unknown_size else positive(size, argument) for size in spatial
    ]
    return *spatial, positive(channels, argument)


def check_width(width: float) -> None:
    """Refuses a multiplier of channels that is not a positive number."""
    good = isinstance(width, Real) and not isinstance(width, bool) and math.isfinite(width)
    if not good or width <= 0:
        raise ValueError(f"width must be a positive number. Received: {width!r}")


def check_block_options(
    name: str, block: type[ReparamConv], options: Mapping[str, Any]
) -> None:
    """Refuses options that a network's blocks do not have, or that the network decides."""
    allowed = _option_names(block)
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise ValueError(
            f"block_options of {name} must be among: {', '.join(sorted(allowed))}. "
            f"Received: {', '.join(unknown)}"
        )


def common_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the options that every block takes, not only one class of them."""
    common = _option_names(ReparamConv)
    return {name: value for name, value in options.items() if name in common}


def _option_names(block: type[ReparamConv]) -> set[str]:
    """The options of a class of blocks that a network leaves to its user."""
    names: set[str] = set()
    for ancestor in inspect.getmro(block):
        if issubclass(ancestor, ReparamConv):
            names.update(inspect.signature(ancestor.__init__).parameters)
    return names - _DECIDED
