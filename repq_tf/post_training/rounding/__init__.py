"""The levels of kernels, chosen by what their layers make of them."""

import functools
from collections.abc import Callable
from typing import Any

from repq_tf.arguments import positive
from repq_tf.calibration.reconstruction import Rounding
from repq_tf.post_training.rounding.adaquant import adaquant
from repq_tf.post_training.rounding.adaround import adaround
from repq_tf.post_training.rounding.descent import descent

# The worst one first. None: the nearest levels, which quantizing takes by itself.
ROUNDINGS: dict[str, Callable[..., Any] | None] = {
    "nearest": None,
    "descent": descent,
    "adaround": adaround,
    "adaquant": adaquant,
}
_TRAINED = ("adaround", "adaquant")

__all__ = ["ROUNDINGS", "find_rounding"]


def find_rounding(name: Any, iterations: Any) -> Rounding | None:
    """Returns the function of a name.

    Args:
        name: one of `ROUNDINGS`.
        iterations: of those that are trained.

    Raises:
        ValueError: an argument is bad.
    """
    positive(iterations, "iterations")
    if not isinstance(name, str) or name not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {tuple(ROUNDINGS)}. Received: {name!r}")
    function = ROUNDINGS[name]
    if function is not None and name in _TRAINED:
        return functools.partial(function, iterations=iterations)
    return function
