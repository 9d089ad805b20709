"""Checks of the arguments of convolutions."""

import numbers

from repq_tf.convolution import VALID

_PADDING = (
    'padding must be "same", "valid", zeros as a number, (height, width) or ((top, bottom), '
    "(left, right))"
)


def _is_positive(value):
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= 1


def positive(value, argument):
    """A positive whole number, or a ValueError that names the argument."""
    if not _is_positive(value):
        raise ValueError(f"{argument} must be a positive whole number. Received: {value!r}")
    return int(value)


def pair(value, argument):
    """A positive whole number or a pair of them, as a pair."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sizes) != 2 or not all(_is_positive(size) for size in sizes):
        raise ValueError(
            f"{argument} must be a positive whole number or a pair of them. Received: {value!r}"
        )
    return tuple(int(size) for size in sizes)


def tuples(value):
    """Lists, which is what `.keras` files make of tuples, as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, tuple | list) else value


def explicit_window(padding):
    """`padding` as "same", or as explicit `((top, bottom), (left, right))`."""
    if isinstance(padding, str):
        if padding.lower() not in ("same", "valid"):
            raise ValueError(f"{_PADDING}. Received: {padding!r}")
        return VALID if padding.lower() == "valid" else "same"
    pairs = padding if isinstance(padding, tuple | list) else (padding, padding)
    pairs = tuple(tuple(n) if isinstance(n, tuple | list) else (n, n) for n in pairs)
    zeros = [n for pair in pairs for n in pair]
    whole = all(isinstance(n, numbers.Integral) and n >= 0 for n in zeros)
    if [len(pair) for pair in pairs] != [2, 2] or not whole:
        raise ValueError(f"{_PADDING}. Received: {padding!r}")
    return pairs
