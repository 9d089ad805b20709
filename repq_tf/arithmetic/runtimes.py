"""Which arithmetic each runtime has of the operators that runtimes compute differently."""

from collections.abc import Callable
from typing import Any

from repq_tf.arithmetic import interpolation, sums, tables
from repq_tf.keras_api import Pair, Tensor

# LiteRT with XNNPACK on x86, and on ARM; TensorFlow Lite Micro; LiteRT's reference kernels.
RUNTIMES = ("xnnpack", "xnnpack_arm", "tflm", "reference")
_FIXED = ("tflm", "reference")


def check_runtime(runtime: Any) -> str:
    """Returns a runtime; raises ValueError if it is not one of `RUNTIMES`."""
    if not isinstance(runtime, str) or runtime not in RUNTIMES:
        raise ValueError(f"runtime must be one of {RUNTIMES}. Received: {runtime!r}")
    return runtime


def is_fixed(runtime: str) -> bool:
    """Whether a runtime computes all in fixed point, as the reference kernels do."""
    return runtime in _FIXED


def add_of(runtime: str, bits: int) -> Callable[..., Tensor]:
    """How tensors of some bits are added; see `sums.add`."""
    if is_fixed(runtime):
        return sums.add_fixed if bits <= 8 else sums.add_fixed_wide
    return sums.add if bits <= 8 else sums.add_wide


def multiply_of(runtime: str) -> Callable[..., Tensor]:
    """How they are multiplied; see `sums.multiply`."""
    special = {"xnnpack": sums.multiply, "xnnpack_arm": sums.multiply_up}
    return special.get(runtime, sums.multiply_fixed)


def softmax_of(runtime: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The softmax of levels; see `tables.softmax`."""
    special = {"xnnpack": tables.softmax, "xnnpack_arm": tables.softmax_arm}
    return special.get(runtime, tables.softmax_fixed)


def elu_of(runtime: str) -> Callable[[Tensor, Tensor, int], Tensor]:
    """The table of ELU; see `tables.elu`."""
    return tables.elu_fixed if is_fixed(runtime) else tables.elu


def interpolate_of(runtime: str) -> Callable[[Tensor, Pair, int], Tensor]:
    """Bilinear interpolation of levels, of a size and a zero point."""
    if is_fixed(runtime):
        return interpolation.interpolate_fixed
    return lambda levels, size, zero_point: interpolation.interpolate_levels(levels, size)
