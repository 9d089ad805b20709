"""Checks of arguments: they return the value, or raise a ValueError that names the argument."""

import fnmatch
import math
import numbers
from collections.abc import Container, Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np

from repq_tf.arithmetic import BITS
from repq_tf.keras_api import Pair, Shape
from repq_tf.windows import VALID, Window

_PADDING = (
    'padding must be "same", "valid", zeros as a number, (height, width) or ((top, bottom), '
    "(left, right))"
)


@overload
def boolean(value: Any, argument: str, optional: Literal[False] = False) -> bool: ...
@overload
def boolean(value: Any, argument: str, optional: bool) -> bool | None: ...
def boolean(value: Any, argument: str, optional: bool = False) -> bool | None:
    """True or False (or 1 or 0, as of NumPy), and where it is `optional`, None."""
    if optional and value is None:
        return None
    if not isinstance(value, bool | np.bool_ | numbers.Integral) or value not in (0, 1):
        allowed = "True, False or None" if optional else "True or False"
        raise ValueError(f"{argument} must be {allowed}. Received: {value!r}")
    return bool(value)


def number(
    value: Any,
    argument: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A finite number within bounds.

    Args:
        value: what the user gave.
        argument: what the error calls it.
        least: the smallest one allowed.
        above: a number that it must be above.
        most: the largest one allowed.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    outside = real and (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
    )
    if not real or outside or not math.isfinite(value):
        bounds = {"at least": least, "above": above, "at most": most}
        given = [f"{text} {bound}" for text, bound in bounds.items() if bound is not None]
        what = f"a number {' and '.join(given)}" if given else "a finite number"
        raise ValueError(f"{argument} must be {what}. Received: {value!r}")
    return value


def _is_positive(value: Any) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= 1


def positive(value: Any, argument: str) -> int:
    """A positive whole number, or a ValueError that names the argument."""
    if not _is_positive(value):
        raise ValueError(f"{argument} must be a positive whole number. Received: {value!r}")
    return int(value)


def check_bits(bits: Any, argument: str = "bits", allowed: Container[int] = BITS) -> int:
    """Returns `bits` as an int, or raises ValueError when it is not among those allowed.

    Args:
        bits: a number of bits.
        argument: what the error calls it.
        allowed: `BITS`, 2 to 8, or `ACTIVATION_BITS`, 16 as well.
    """
    if isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or bits not in allowed:
        more = ", or 16" if 16 in allowed else ""
        raise ValueError(
            f"{argument} must be a whole number from 2 to 8{more}. Received: {bits!r}"
        )
    return int(bits)


def pair(value: Any, argument: str) -> Pair:
    """A positive whole number or a pair of them, as a pair."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or not all(_is_positive(size) for size in sizes):
        raise ValueError(
            f"{argument} must be a positive whole number or a pair of them. Received: {value!r}"
        )
    return int(sizes[0]), int(sizes[1])


def name_patterns(value: Any, argument: str) -> tuple[str, ...]:
    """A shell-style pattern of layer names, or several, as a tuple."""
    patterns = (value,) if isinstance(value, str) else value
    several = isinstance(patterns, list | tuple | set) and len(patterns) > 0
    if not several or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{argument} must be name patterns. Received: {value!r}")
    return tuple(patterns)


def matching(names: Sequence[str], patterns: Iterable[str], argument: str) -> set[str]:
    """The names of convolutions that patterns match, each of them some.

    Args:
        names: of the convolutions that there are.
        patterns: of `name_patterns`.
        argument: what the error calls them.
    """
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            there = f"These are: {', '.join(names)}" if names else "There is none"
            raise ValueError(f"{argument}: {pattern!r} matches no convolution. {there}")
        found.update(matched)
    return found


def tuples(value: Any) -> Any:
    """Lists, which is what `.keras` files make of tuples, as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, tuple | list) else value


def fits(shape: Shape, given: Shape) -> bool:
    """Whether a shape is one of those that another describes, with None for any size."""
    return len(shape) == len(given) and all(
        want in (None, got) for want, got in zip(shape, given, strict=True)
    )


def fitting_shape(shape: Shape, given: Any) -> tuple[int, ...]:
    """`input_shape` as a tuple, of a model that takes a shape with None for any size.

    Raises:
        ValueError: it is no shape, or not one that the model takes.
    """
    sizes = tuple(given) if isinstance(given, Iterable) else ()
    whole = all(isinstance(size, numbers.Integral) and int(size) > 0 for size in sizes)
    if not whole or not fits(shape, sizes):
        raise ValueError(
            f"input_shape must be whole, positive sizes that fit the model's {shape}. "
            f"Received: {given!r}"
        )
    return tuple(int(size) for size in sizes)


def explicit_window(padding: Any) -> Window | Literal["same"]:
    """`padding` as "same", or as explicit `((top, bottom), (left, right))`."""
    if isinstance(padding, str):
        if padding.lower() not in ("same", "valid"):
            raise ValueError(f"{_PADDING}. Received: {padding!r}")
        return VALID if padding.lower() == "valid" else "same"
    pairs = padding if isinstance(padding, tuple | list) else (padding, padding)
    pairs = tuple(tuple(n) if isinstance(n, tuple | list) else (n, n) for n in pairs)
    zeros = [n for pair in pairs for n in pair]
    whole = all(isinstance(n, numbers.Integral) and int(n) >= 0 for n in zeros)
    if [len(pair) for pair in pairs] != [2, 2] or not whole:
        raise ValueError(f"{_PADDING}. Received: {padding!r}")
    return pairs
