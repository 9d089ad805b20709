"""The algebra: an affine convolution as a value with `+`, `then`, `scale`, `embed`.

Everything that re-parameterization merges is one of these operations, so a
block's merge is the evaluation of its expression, and no block has a merge
formula of its own. The operations are pure and differentiable. On NumPy arrays
they compute with NumPy in the arrays' dtype (float64 for deployment); on
tensors, with `keras.ops`.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from repq_tf.keras_api import Array, Pair, Tensor, dtype_name, ops


def _namespace(*arrays: Array | Tensor) -> Any:
    return np if all(isinstance(array, np.ndarray) for array in arrays) else ops


def centre_offset(outer: int, inner: int) -> int:
    """Where a kernel of size `inner` lies inside one of size `outer`, on one axis.

    It is the offset that makes both read the same pixel at their centre tap under
    Keras's "same" padding with stride 1, where `(size - 1) // 2` zeros come first.
    """
    return (outer - 1) // 2 - (inner - 1) // 2


def dilate(kernel: Array | Tensor, rates: Pair) -> Array | Tensor:
    """A kernel `(kh, kw, ...)` with zeros between its weights.

    Args:
        kernel: the kernel.
        rates: the pixels from a weight to the next, `(height, width)`.

    Returns:
        `((kh - 1) rh + 1, (kw - 1) rw + 1, ...)`.
    """
    if tuple(rates) == (1, 1):
        return kernel
    xp, (kh, kw, *channels) = _namespace(kernel), kernel.shape
    (rh, rw), rest = rates, [(0, 0)] * len(channels)
    kernel = xp.reshape(kernel, (kh, 1, kw, 1, *channels))
    kernel = xp.pad(kernel, ((0, 0), (0, rh - 1), (0, 0), (0, rw - 1), *rest))
    kernel = xp.reshape(kernel, (kh * rh, kw * rw, *channels))
    return kernel[: (kh - 1) * rh + 1, : (kw - 1) * rw + 1]


def dilated_size(size: Pair, rates: Pair) -> Pair:
    """The size of a kernel with zeros between its weights."""
    (kh, kw), (rh, rw) = size, rates
    return (kh - 1) * rh + 1, (kw - 1) * rw + 1


@dataclasses.dataclass(frozen=True, eq=False)
class AffineKernel:
    """An affine convolution `y = correlate(x, kernel) + bias`, as a value.

    Attributes:
        kernel: `(kh, kw, in_channels / groups, out_channels)`; a NumPy array or a
            backend tensor. Output channel `o` belongs to group
            `o // (out_channels / groups)`. A depthwise kernel has
            `groups == in_channels`.
        bias: `(out_channels,)`. A NumPy array of zeros beside a tensor is known to be zero,
            and costs nothing.
        groups: the number of groups.

    Example:
        >>> expand = AffineKernel(np.ones((1, 1, 4, 6)), np.ones(6))
        >>> conv = AffineKernel(np.ones((3, 3, 6, 4)), np.zeros(4))
        >>> merged = expand.then(conv) + AffineKernel.identity(4)
        >>> merged.kernel.shape, float(merged.bias[0])
        ((3, 3, 4, 4), 54.0)
    """

    kernel: Array | Tensor
    bias: Array | Tensor
    groups: int = 1

    @classmethod
    def identity(cls, channels: int, dtype: Any = "float32") -> "AffineKernel":
        """The identity map, as the depthwise 1x1 kernel of ones (NumPy arrays)."""
        return cls(np.ones((1, 1, 1, channels), dtype), np.zeros((channels,), dtype), channels)

    @property
    def size(self) -> Pair:
        """The spatial size `(kh, kw)`."""
        return tuple(self.kernel.shape[:2])

    @property
    def in_channels(self) -> int:
        """The number of input channels."""
        return self.kernel.shape[2] * self.groups

    @property
    def out_channels(self) -> int:
        """The number of output channels."""
        return self.kernel.shape[3]

    @property
    def has_bias(self) -> bool:
        """Whether the bias is anything but known to be zero."""
        return not isinstance(self.bias, np.ndarray) or bool(self.bias.any())

    def scale(self, gain: Tensor, shift: Tensor | None = None) -> "AffineKernel":
        """Per output channel: `gain * y + shift`, gain and shift `(out_channels,)`."""
        bias = self.bias * gain if self.has_bias else self.bias
        return AffineKernel(
            self.kernel * gain, bias if shift is None else bias + shift, self.groups
        )

    def scale_inputs(self, gain: Tensor) -> "AffineKernel":
        """The map of `gain * x`, gain `(in_channels,)`."""
        inputs = AffineKernel.identity(self.in_channels, dtype_name(self.kernel))
        return inputs.scale(gain).then(self)

    def embed(self, size: Pair) -> "AffineKernel":
        """The same map, written as a kernel of a larger size `(kh, kw)`, zero outside."""
        if any(new < old for new, old in zip(size, self.size, strict=True)):
            raise ValueError(f"embed: size must be at least {self.size}. Received: {size}")
        if tuple(size) == self.size:
            return self
        pads = []
        for new, old in zip(size, self.size, strict=True):
            before = centre_offset(new, old)
            pads.append((before, new - old - before))
        kernel = _namespace(self.kernel).pad(self.kernel, (*pads, (0, 0), (0, 0)))
        return AffineKernel(kernel, self.bias, self.groups)

    def regroup(self, groups: int) -> "AffineKernel":
        """The same map with fewer groups: blocks of zeros between the old ones.

        Args:
            groups: a divisor of `self.groups`; 1 gives a dense kernel.
        """
        if self.groups % groups:
            raise ValueError(
                f"regroup: groups must divide {self.groups}. Received: groups={groups}"
            )
        if groups == self.groups:
            return self
        xp = _namespace(self.kernel)
        (kh, kw), ratio = self.size, self.groups // groups
        inputs = self.kernel.shape[2]
        outputs = self.out_channels // self.groups
        kernel = xp.reshape(self.kernel, (kh, kw, 1, inputs, groups, ratio, outputs))
        diagonal = np.eye(ratio, dtype=dtype_name(kernel))
        kernel = kernel * np.reshape(diagonal, (1, 1, ratio, 1, 1, ratio, 1))
        kernel = xp.reshape(kernel, (kh, kw, ratio * inputs, self.out_channels))
        return AffineKernel(kernel, self.bias, groups)

    def __add__(self, other: "AffineKernel") -> "AffineKernel":
        """Parallel branches: embed in a common size, bring to common groups, add."""
        if (self.in_channels, self.out_channels) != (other.in_channels, other.out_channels):
            raise ValueError(
                "Kernels to add must have equal channels. Received: "
                f"{self.in_channels} -> {self.out_channels} and "
                f"{other.in_channels} -> {other.out_channels}"
            )
        height, width = map(max, zip(self.size, other.size, strict=True))
        groups = math.gcd(self.groups, other.groups)
        left, right = (a.embed((height, width)).regroup(groups) for a in (self, other))
        return AffineKernel(left.kernel + right.kernel, left.bias + right.bias, groups)

    def then(self, other: "AffineKernel") -> "AffineKernel":
        """Chain: the map `other(self(x))`, a full convolution of the two kernels.

        `K[u, v] = sum_{h + p = u, d + q = v} A[h, d] B[p, q]`, contracted over the
        channels between; the bias is pushed through:
        `b = sum_{p, q, m} B[p, q, m] a_m + b_B`. Equal to running the two one after
        the other without padding between them.
        """
        if self.out_channels != other.in_channels:
            raise ValueError(
                f"then: a kernel with {self.out_channels} output channels cannot precede "
                f"one with {other.in_channels} input channels"
            )
        if max(self.groups, other.groups) % min(self.groups, other.groups):
            groups = math.gcd(self.groups, other.groups)
            return self.regroup(groups).then(other.regroup(groups))
        xp = _namespace(self.kernel, other.kernel)
        kernel = None
        # One contraction for each tap of the smaller kernel.
        over_first = math.prod(self.size) < math.prod(other.size)
        taps = self.size if over_first else other.size
        for h, d in np.ndindex(*taps):
            first, second = self.kernel, other.kernel
            if over_first:
                first = first[h : h + 1, d : d + 1]
            else:
                second = second[h : h + 1, d : d + 1]
            term = _contract(first, second, self.groups, other.groups)
            if taps != (1, 1):
                pads = ((h, taps[0] - 1 - h), (d, taps[1] - 1 - d), (0, 0), (0, 0))
                term = xp.pad(term, pads)
            kernel = term if kernel is None else kernel + term
        bias = other.response(self.bias) + other.bias if self.has_bias else other.bias
        return AffineKernel(kernel, bias, min(self.groups, other.groups))

    def response(self, constant: Tensor) -> Tensor:
        """The output, without bias, to an input of constant channels `(in_channels,)`."""
        xp = _namespace(self.kernel, constant)
        weight = xp.sum(self.kernel, axis=(0, 1))
        inputs, outputs = self.kernel.shape[2], self.out_channels // self.groups
        weight = xp.reshape(weight, (inputs, self.groups, outputs))
        constant = xp.reshape(constant, (self.groups, inputs))
        return xp.reshape(xp.einsum("igo,gi->go", weight, constant), (self.out_channels,))


def _contract(first: Tensor, second: Tensor, first_groups: int, second_groups: int) -> Tensor:
    """Contracts the channels between two kernels, one of which has a single tap."""
    xp = _namespace(first, second)
    single_first = first.shape[0] == first.shape[1] == 1
    if first_groups == second_groups == 1:
        if single_first:
            return xp.einsum("im,hwmo->hwio", first[0, 0], second)
        return xp.einsum("hwim,mo->hwio", first, second[0, 0])
    groups = min(first_groups, second_groups)
    ratio = max(first_groups, second_groups) // groups
    (kh, kw), inputs = first.shape[:2], first.shape[2]
    (ph, pw), outputs = second.shape[:2], second.shape[3] // second_groups
    middle = first.shape[3] // max(first_groups, second_groups)
    first = xp.reshape(first, (kh, kw, inputs, groups, ratio, middle))
    if first_groups >= second_groups:
        # The ratio runs over the first kernel's groups, hence over inputs.
        second = xp.reshape(second, (ph, pw, ratio, middle, groups, outputs))
        letters, result = "rmgo", "rigo"
    else:
        # It runs over the second kernel's groups, hence over outputs.
        second = xp.reshape(second, (ph, pw, middle, groups, ratio, outputs))
        letters, result = "mgro", "igro"
    if middle == 1 and first_groups < second_groups:
        # Nothing to sum over (a depthwise kernel behind a dense one): several times as fast.
        kernel = first * xp.reshape(second, (ph, pw, 1, groups, ratio, outputs))
    elif single_first:
        kernel = xp.einsum(f"igrm,hw{letters}->hw{result}", first[0, 0], second)
    else:
        kernel = xp.einsum(f"hwigrm,{letters}->hw{result}", first, second[0, 0])
    rows = ratio * inputs if first_groups >= second_groups else inputs
    return xp.reshape(kernel, (*kernel.shape[:2], rows, -1))
