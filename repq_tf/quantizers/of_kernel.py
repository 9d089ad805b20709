"""Which quantizer a kernel gets."""

from typing import Any

import numpy as np

from repq_tf.keras_api import Array, ops
from repq_tf.quantizers.cluster import ClusterLSQ
from repq_tf.quantizers.lsq_layer import LSQ
from repq_tf.quantizers.wide_tap import WideTapLSQ, identity_taps

WEIGHT_LEVELS = ("uniform", "odd", "cluster")
# Beyond, the tap's bound on the step costs more than the other levels gain.
_WIDE_TAP_BITS = 4


def check_weight_levels(weight_levels: Any, name: str = "weight_levels") -> str:
    """Returns the name of a kind of levels, or raises ValueError listing those there are."""
    if not isinstance(weight_levels, str) or weight_levels not in WEIGHT_LEVELS:
        raise ValueError(f"{name} must be one of {WEIGHT_LEVELS}. Received: {weight_levels!r}")
    return weight_levels


def kernel_quantizer(weight_levels: str, wide_tap: bool, **options: Any) -> LSQ:
    """The quantizer of a merged kernel.

    Args:
        weight_levels: "uniform", all integers between the bounds of the bits; "odd", as many
            odd ones, see `LSQ`; or "cluster", as many of int8, see `ClusterLSQ`.
        wide_tap: whether the weight of an identity has the levels of int8, see `WideTapLSQ`.
        **options: those of `LSQ`.

    Raises:
        ValueError: a codebook is to have a wide tap.

    Example:
        >>> kernel_quantizer("odd", wide_tap=True, bits=2, channels=64)
    """
    if weight_levels == "cluster":
        check_levels_beside_tap(weight_levels, wide_tap)
        return ClusterLSQ(**options)
    kind = WideTapLSQ if wide_tap else LSQ
    return kind(odd=weight_levels == "odd", **options)


def check_levels_beside_tap(weight_levels: str, wide_tap: bool | str, where: str = "") -> None:
    """Raises ValueError for a codebook that is to have a wide tap.

    Args:
        weight_levels: as of `kernel_quantizer`.
        wide_tap: likewise, or "auto", with which a codebook has none.
        where: what the error begins with.
    """
    if weight_levels == "cluster" and wide_tap is True:
        raise ValueError(
            f"{where}weight_levels='cluster' puts codes where the weights are, an identity's"
            " too, and goes without wide_tap. Received: both"
        )


def check_wide_tap(wide_tap: Any, name: str = "wide_tap") -> bool | str:
    """Returns True, False or "auto", or raises ValueError."""
    if wide_tap != "auto" and not isinstance(wide_tap, bool):
        raise ValueError(f"{name} must be True, False or 'auto'. Received: {wide_tap!r}")
    return wide_tap


def tap_stands_out(kernel: Array, bits: int, weight_levels: str, per_channel: bool) -> bool:
    """Whether a wide tap at least halves a kernel's error: the rule of `wide_tap="auto"`.

    The error of a filter is that of its weights with their first steps, squared, in parts of
    the energy of those that are no tap; filters count alike. Kernels of more than 4 bits, whose
    steps the tap would bound, have none.

    Args:
        kernel: of a geometry that can hold an identity, `(kh, kw, inputs, filters)`.
        bits: of its weights.
        weight_levels: as of `kernel_quantizer`.
        per_channel: whether each filter has a step of its own.
    """
    if bits > _WIDE_TAP_BITS:
        return False
    kernel = np.asarray(kernel, np.float32)
    rest = np.where(identity_taps(kernel.shape), 0, kernel)
    energy = np.maximum(np.square(rest).sum(axis=(0, 1, 2)), np.finfo(np.float32).tiny)
    errors = []
    for wide in (False, True):
        channels = kernel.shape[-1] if per_channel else None
        quantizer = kernel_quantizer(weight_levels, wide, bits=bits, channels=channels)
        quantizer.build(None)
        quantizer.initialize(kernel)
        error = ops.convert_to_numpy(quantizer(kernel)) - kernel
        errors.append((np.square(error).sum(axis=(0, 1, 2)) / energy).mean())
    return bool(errors[1] <= errors[0] / 2)
