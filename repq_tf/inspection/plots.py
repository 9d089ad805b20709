"""Plots of analyses and of sensitivities."""

from collections.abc import Mapping, Sequence
from typing import Any

from repq_tf.inspection.pages import Figure
from repq_tf.inspection.trade_off import Choice, allocate
from repq_tf.quantization.table import LARGE_GAIN

Axes = Any
SUFFIXES = (".pdf", ".png", ".svg")


def draw_weights(analysis: Any) -> Figure:
    """The weights of each layer: largest magnitude over the channels' root mean square."""
    rows = [row for row in analysis.rows if row.weights is not None]
    figure, axis = _figure([row.name for row in rows])
    _lines(
        axis,
        {
            "standard deviation": [row.weights.std for row in rows],
            "max/rms": [row.weights.peak for row in rows],
            "range ratio of channels": [row.weights.range_ratio for row in rows],
        },
    )
    axis.set_yscale("log")
    axis.set_title("weights of the merged kernels")
    return figure


def draw_branches(analysis: Any) -> Figure:
    """The standard deviation and the largest gain of each branch."""
    found = [(row.name, branch) for row in analysis.rows for branch in row.branches]
    figure, axis = _figure([f"{name}: {branch.name}" for name, branch in found])
    _lines(
        axis,
        {
            "largest weight": [max(abs(b.low), abs(b.high)) or None for _, b in found],
            "gain": [branch.gain or None for _, branch in found],
        },
        "o",
    )
    axis.axhline(LARGE_GAIN, color="0.7", linestyle="--", label="a large gain")
    axis.set_yscale("log")
    axis.set_title("branches")
    axis.legend()
    return figure


def draw_features(analysis: Any) -> Figure:
    """The range of each layer's outputs, and where nearly all of them lie."""
    rows = analysis.rows
    figure, axis = _figure([row.name for row in rows])
    places, found = range(len(rows)), [row.features for row in rows]
    lows, highs = [f.low for f in found], [f.high for f in found]
    axis.vlines(places, lows, highs, color="0.7", label="smallest to largest")
    inner = [max(f.low, -f.quantile) for f in found], [min(f.high, f.quantile) for f in found]
    axis.vlines(places, *inner, color="C0", linewidth=4, label="99.99 % of them")
    smallest = min((f.quantile for f in found if f.quantile), default=1.0)
    axis.set_yscale("symlog", linthresh=smallest)
    axis.set_title("outputs of the layers")
    axis.legend()
    return figure


def draw_noise(analysis: Any) -> Figure:
    """The signal-to-noise ratios of each layer."""
    rows = analysis.rows
    figure, axis = _figure([row.name for row in rows])
    names = {
        "weights alone": "weights_alone",
        "features alone": "features_alone",
        "weights up to here": "weights",
        "features up to here": "features",
        "both up to here": "total",
    }
    series = {
        label: [getattr(row.noise, name) for row in rows] for label, name in names.items()
    }
    _lines(axis, series)
    axis.set_ylabel("dB")
    axis.set_title("signal-to-noise ratio of the layers' outputs")
    return figure


def draw_sensitivity(
    names: Sequence[str],
    noise: Mapping[int, Sequence[float | None]],
    choices: Mapping[str, Sequence[Choice]],
) -> Figure:
    """The noise of single quantizers, and how the sum of weights' noises falls with size.

    Args:
        names: of the quantizers.
        noise: that of each quantizer, by bits.
        choices: those of each layer, by its name; costs are bytes.
    """
    figure, left, right = _figure(names, 2)
    _lines(left, {f"{bits} bits": values for bits, values in noise.items()}, ".")
    path = allocate(choices)
    right.plot([a.cost for a in path], [a.noise for a in path], ".-", label="allocate_bits")
    every = [choice for found in choices.values() for choice in found]
    for bits in noise:
        equal = [choice for choice in every if choice.bits == bits]
        cost, sum_of_noise = sum(c.cost for c in equal), sum(c.noise for c in equal)
        right.plot([cost], [sum_of_noise], "x", label=f"{bits} bits everywhere")
    for axis in (left, right):
        axis.set_yscale("log" if all(c.noise > 0 for c in every) else "symlog")
    left.set_ylabel("noise at the outputs")
    left.set_title("one quantizer alone")
    right.set_xlabel("bytes of the weights and biases")
    right.set_title("sum of the weights' noises")
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    return figure


def _figure(names: Sequence[str], count: int = 1) -> list[Any]:
    """A figure and its axes, along the first of which layers stand."""
    from matplotlib.figure import Figure as New  # without pyplot: no window, no global state

    width = max(6.0, 2.5 + 0.25 * len(names))
    height = 4.0 + 0.08 * max(map(len, names), default=0)  # with their names below
    figure = New(figsize=(width + 6 * (count - 1), height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, width_ratios=(width, *[6] * (count - 1)))
    axes[0, 0].set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes[0, 0].grid(alpha=0.3)
    return [figure, *axes[0]]


def _lines(axis: Axes, series: Mapping[str, Sequence[float | None]], style: str = ".-") -> None:
    """A line for each series; None makes a gap."""
    for label, values in series.items():
        known = [float("nan") if value is None else value for value in values]
        axis.plot(range(len(known)), known, style, label=label)
    axis.legend(fontsize=8)
