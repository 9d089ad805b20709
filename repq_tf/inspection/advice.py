"""What endangers a layer under quantization, and what to do about it, in words."""

from collections.abc import Iterator
from typing import Any

from repq_tf.inspection.weights import BranchFigures, WeightFigures
from repq_tf.quantization.table import LARGE_GAIN

# Ratios of ranges that one step for all channels leaves few levels of.
_UNEQUAL = 30.0
# How far the largest feature may lie beyond the others'.
_OUTLIER = 8.0
_MANY_DEAD = 0.1
_MUCH_CLIPPED = 0.01
# Decibels that spoil a network; 8 bits leave 40 and more.
_NOISY = 15.0
_WEIGHTS, _ACTIVATIONS = "weight_bits", "activation_bits"


def advise(row: Any) -> tuple[str, ...]:
    """The warnings of one row of an analysis, each with a remedy.

    Args:
        row: a `LayerAnalysis`.
    """
    return tuple((*_branches(row), *_weights(row), *_features(row), *_noise(row)))


def _branches(row: Any) -> Iterator[str]:
    for branch in row.branches:
        if branch.gain is not None and branch.gain > LARGE_GAIN:
            yield (
                f"{branch.name} branch of {row.name} has gain {branch.gain:.3g} at channel "
                f"{branch.channel}{_nearly_constant(branch)}: its taps dwarf the others of the "
                "merged kernel; train with OABN (oabn_k=2) or a QARepVGGBlock, or equalize"
            )


def _nearly_constant(branch: BranchFigures) -> str:
    tiny = branch.variance is not None and branch.variance < (branch.epsilon or 0.0)
    return ", whose features are nearly constant" if tiny else ""


def _weights(row: Any) -> Iterator[str]:
    weights: WeightFigures | None = row.weights
    if weights is None:
        return
    if weights.constant:
        yield (
            f"{weights.constant} of {weights.channels} channels of {row.name} are constant, "
            "their weights being nothing beside the others': prune them, or set these weights "
            "to 0"
        )
    if weights.range_ratio > _UNEQUAL and weights.bits is not None and not weights.per_channel:
        yield (
            f"the channels of {row.name} have ranges as unequal as 1 : "
            f"{weights.range_ratio:.3g}, and one step: use per_channel=True, or equalize"
        )


def _features(row: Any) -> Iterator[str]:
    features = row.features
    largest = max(abs(features.low), abs(features.high))
    if features.quantile and largest > _OUTLIER * features.quantile:
        yield (
            f"outputs of {row.name} reach {largest:.3g}, and 99.99 % of them "
            f"{features.quantile:.3g}: a grid for all of them is coarse for most; choose its "
            f"range by a percentile, equalize, or {_more_bits(row, _ACTIVATIONS)}"
        )
    constant = 0 if row.weights is None else row.weights.constant
    if features.dead - constant > _MANY_DEAD * features.channels:
        yield (
            f"{features.dead} of {features.channels} channels of {row.name} are 0 on all "
            "images: prune them, or make the network narrower"
        )
    if features.clipped is not None and features.clipped > _MUCH_CLIPPED:
        yield (
            f"{row.name} clips {100 * features.clipped:.3g} % of its outputs: calibrate with "
            f"images like these, or {_more_bits(row, _ACTIVATIONS)}"
        )


def _noise(row: Any) -> Iterator[str]:
    noise = row.noise
    for kind, key, alone in (
        ("weights", _WEIGHTS, noise.weights_alone),
        ("outputs", _ACTIVATIONS, noise.features_alone),
    ):
        if alone is not None and alone < _NOISY:
            yield (
                f"the quantized {kind} of {row.name} alone leave {alone:.1f} dB: "
                f"{_more_bits(row, key)}, equalize, or train quantized"
            )


def _more_bits(row: Any, key: str) -> str:
    """How to give a layer more bits, or to do without."""
    found = row.weights if key == _WEIGHTS else row.features
    if (found.bits or 8) < 8:
        return f"give it more bits, rules=[({row.name!r}, {{{key!r}: ...}})]"
    everywhere = key == _ACTIVATIONS
    return "use activation_bits=16 everywhere" if everywhere else "round it by what it outputs"
