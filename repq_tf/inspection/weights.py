"""Figures of weights: of a layer's kernel, and of each branch that is merged into it."""

import dataclasses

import numpy as np

from repq_tf.branches import BatchNorm, Branch, NumpyReading, Online, Scale, Sum
from repq_tf.keras_api import Array, Layer
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import STOCK, stock_kernel
from repq_tf.quantization.table import peak_to_rms

# A channel whose weights are all this small a part of the kernel's largest is a constant.
_NOTHING = 1e-6


@dataclasses.dataclass(frozen=True)
class WeightFigures:
    """Figures of one kernel, the one that is quantized.

    Attributes:
        bits: of its weights; None in floating point.
        per_channel: whether each output channel has a step of its own.
        channels: the number of output channels.
        std: the standard deviation of all weights.
        peak: the largest magnitude over the root mean square, of the worst channel where
            steps are per channel.
        kurtosis: `E[(w - E w)^4] / V[w]^2`: 3 for a Gaussian, more with long tails; None for a
            kernel of equal weights.
        range_ratio: the largest magnitude of a channel over that of another channel, the
            largest such ratio; constant channels do not count.
        constant: the number of channels whose weights are nothing beside the others'.
    """

    bits: int | None
    per_channel: bool
    channels: int
    std: float
    peak: float
    kurtosis: float | None
    range_ratio: float
    constant: int


@dataclasses.dataclass(frozen=True)
class BranchFigures:
    """Figures of one branch of a block, as QARepVGG's authors compare them (arXiv 2212.01593).

    Attributes:
        name: of the branch: that of its convolution, chain or identity.
        std: the standard deviation of the weights that it adds to the merged kernel, without
            the zeros around them.
        low: the smallest of these weights.
        high: the largest.
        gain: the largest `|gamma| / sqrt(variance + epsilon)` of its batch norms; None without.
        channel: the channel where that is.
        variance: the moving variance there.
        epsilon: of the batch norm there.
    """

    name: str
    std: float
    low: float
    high: float
    gain: float | None = None
    channel: int | None = None
    variance: float | None = None
    epsilon: float | None = None


def weight_figures(layer: Layer) -> WeightFigures | None:
    """The figures of a layer's kernel; None for a layer without one."""
    if isinstance(layer, ReparamConv):
        kernel = layer.inner.merge(NumpyReading()).kernel
        return _figures(kernel, layer.weight_bits, layer.per_channel)
    if type(layer) in STOCK:
        return _figures(np.asarray(stock_kernel(layer), np.float64), None, True)
    return None


def _figures(kernel: Array, bits: int | None, per_channel: bool) -> WeightFigures:
    centred = kernel - kernel.mean()
    variance = np.mean(centred**2)
    ranges = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    ratio, constant = spread(ranges)
    return WeightFigures(
        bits=bits,
        per_channel=per_channel,
        channels=len(ranges),
        std=float(np.sqrt(variance)),
        peak=peak_to_rms(kernel, per_channel),
        kurtosis=float(np.mean(centred**4) / variance**2) if variance else None,
        range_ratio=ratio,
        constant=int(constant.sum()),
    )


def spread(ranges: Array) -> tuple[float, Array]:
    """The largest ratio of the ranges of two channels, and which channels have none.

    Args:
        ranges: the largest magnitude of each channel, `(channels,)`.

    Returns:
        `(ratio, nothing)`, the latter booleans `(channels,)`; these channels do not count for
        the ratio, which is 1 where all are such.
    """
    nothing = ranges <= _NOTHING * ranges.max()
    alive = ranges[~nothing]
    return float(alive.max() / alive.min()) if alive.size else 1.0, nothing


def branch_figures(layer: Layer) -> tuple[BranchFigures, ...]:
    """The figures of a layer's branches; none for a layer that is a single convolution."""
    return tuple(_branch(branch) for branch in _branches(layer))


def _branches(layer: Layer) -> list[Branch]:
    if not isinstance(layer, ReparamConv):
        return []
    inner = layer.inner
    while isinstance(inner, Online):
        inner = inner.child
    if isinstance(inner, Sum):
        return list(inner.children)
    return [inner] if layer.merged_batch_norms else []


def _branch(branch: Branch) -> BranchFigures:
    reading = NumpyReading()
    weights = branch.merge(reading).kernel
    found = BranchFigures(
        name=_name(branch),
        std=float(weights.std()),
        low=float(weights.min()),
        high=float(weights.max()),
    )
    for norm in branch.walk():
        if not isinstance(norm, BatchNorm):
            continue
        gains = np.abs(norm.gain_and_shift(reading=reading)[0])
        channel = int(gains.argmax())
        if found.gain is None or gains[channel] > found.gain:
            variance = reading.moving(norm.statistics)[1][channel]
            found = dataclasses.replace(
                found,
                gain=float(gains[channel]),
                channel=channel,
                variance=float(variance),
                epsilon=norm.epsilon,
            )
    return found


def _name(branch: Branch) -> str:
    while isinstance(branch, BatchNorm | Scale):
        branch = branch.child
    return branch.name
