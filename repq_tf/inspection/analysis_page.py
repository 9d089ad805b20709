"""An `Analysis` as text and as a page: four tables, the meanings of columns, plots."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from repq_tf.inspection import pages, plots
from repq_tf.text import columns


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column: its title, what it means, and the cell that it has for an item."""

    title: str
    meaning: str
    cell: Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class _Section:
    """One table.

    Attributes:
        title: its heading.
        items: `items(analysis)` yields `(row, item)` for each line.
        columns: those behind the layer's name and class; their cells are made of the item.
        plot: what draws an analysis.
        caption: what the plot shows.
    """

    title: str
    items: Callable[[Any], Iterator[tuple[Any, Any]]]
    columns: tuple[_Column, ...]
    plot: Callable[[Any], Any]
    caption: str


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _figure(title: str, name: str, meaning: str) -> _Column:
    return _Column(title, meaning, lambda item: _number(getattr(item, name)))


def _count(title: str, name: str, meaning: str) -> _Column:
    return _Column(title, meaning, lambda item: str(getattr(item, name) or ""))


def _bits(meaning: str) -> _Column:
    return _Column("bits", meaning, lambda item: str(item.bits or "float"))


def _decibels(title: str, name: str, meaning: str) -> _Column:
    def cell(item: Any) -> str:
        value = getattr(item, name)
        return "" if value is None else f"{value:.1f}"

    return _Column(title, meaning, cell)


def _of_rows(name: str) -> Callable[[Any], Iterator[tuple[Any, Any]]]:
    def items(analysis: Any) -> Iterator[tuple[Any, Any]]:
        for row in analysis.rows:
            found = getattr(row, name)
            for item in found if isinstance(found, tuple) else (found,):
                if item is not None:
                    yield row, item

    return items


_WEIGHTS = _Section(
    "Weights",
    _of_rows("weights"),
    (
        _bits("of the merged kernel's weights"),
        _figure("std", "std", "standard deviation of the merged kernel's weights"),
        _figure(
            "max/rms",
            "peak",
            "largest weight over the root mean square (of the worst channel, where each has a"
            " step); the larger, the fewer levels most weights have",
        ),
        _figure(
            "kurtosis",
            "kurtosis",
            "fourth moment over squared variance: 3 for a Gaussian, more with long tails",
        ),
        _figure(
            "range ratio",
            "range_ratio",
            "largest weight of the widest output channel over that of the narrowest; harms"
            " where all share one step",
        ),
        _count(
            "constant",
            "constant",
            "output channels whose weights are nothing beside the others'",
        ),
    ),
    plots.draw_weights,
    "standard deviation and largest magnitude of each layer's weights",
)
_BRANCHES = _Section(
    "Branches",
    _of_rows("branches"),
    (
        _Column("branch", "a term of the block's expression", lambda item: item.name),
        _figure("std", "std", "standard deviation of the weights that it adds to the kernel"),
        _figure("min", "low", "smallest of these weights"),
        _figure("max", "high", "largest of these weights"),
        _figure(
            "gain",
            "gain",
            "largest |gamma| / sqrt(variance + epsilon) of its batch norms; above 100 a channel"
            " is nearly constant, and its taps dwarf the others",
        ),
        _Column(
            "channel",
            "the channel of that gain",
            lambda item: "" if item.channel is None else str(item.channel),
        ),
    ),
    plots.draw_branches,
    "largest weight and largest gain of each branch",
)
_FEATURES = _Section(
    "Features",
    _of_rows("features"),
    (
        _bits("of the grid that the layer's output lies on in the quantized network"),
        _figure("min", "low", "smallest output of the layer and of what is fused into it"),
        _figure("max", "high", "largest output"),
        _figure("std", "std", "standard deviation of the outputs"),
        _figure(
            "99.99 %",
            "quantile",
            "magnitude that 99.99 % of the outputs do not pass; far below"
            " the largest, few values stretch the grid",
        ),
        _figure(
            "range ratio",
            "range_ratio",
            "largest output of the widest channel over that of the narrowest that is not 0; all"
            " share one step",
        ),
        _count("dead", "dead", "channels that are 0 at all pixels of all images"),
        _count("constant", "constant", "channels that have another value at all of them"),
        _Column(
            "clipped",
            "share of outputs beyond the grid in the quantized network",
            lambda item: f"{100 * item.clipped:.2g} %" if item.clipped else "",
        ),
    ),
    plots.draw_features,
    "range of each layer's outputs",
)
_NOISE = _Section(
    "Noise",
    _of_rows("noise"),
    (
        _decibels(
            "weights alone", "weights_alone", "this layer's weights quantized, nothing else"
        ),
        _decibels(
            "features alone", "features_alone", "the layer's output quantized, nothing else"
        ),
        _decibels("weights", "weights", "weights of this layer and all before it quantized"),
        _decibels("features", "features", "its output and all tensors before it quantized"),
        _decibels("both", "total", "weights and features quantized up to here"),
    ),
    plots.draw_noise,
    "signal-to-noise ratio of each layer's output",
)
_SECTIONS = (_WEIGHTS, _BRANCHES, _FEATURES, _NOISE)
_TEXTS = ("layer", "class")
_UNIT = (
    "Noise is given as the signal-to-noise ratio of a layer's output in decibels,"
    " 10 log10(sum y^2 / sum (y' - y)^2), y being the float network's; 6 dB are one bit."
)


def as_text(analysis: Any) -> str:
    """The tables in columns."""
    parts = [_title(analysis)]
    for section in _SECTIONS:
        lines = _lines(section, analysis)
        if lines:
            head = _header(section)
            table = columns([head, *lines], range(_words(section), len(head)))
            parts += ["", section.title, table]
    parts += [_UNIT, "", *(f"warning: {text}" for text in analysis.warnings)]
    return "\n".join(parts).rstrip()


def as_html(analysis: Any) -> str:
    """The tables with plots and meanings, as an HTML page."""
    warnings = analysis.warnings or ["None."]
    parts = [
        pages.paragraphs([_title(analysis)]),
        pages.heading("Warnings"),
        pages.paragraphs(warnings),
    ]
    for section in _SECTIONS:
        lines = _lines(section, analysis)
        if lines:
            parts += [
                pages.heading(section.title),
                pages.picture(section.plot(analysis), section.caption),
                pages.table(_header(section), lines, _words(section)),
                pages.glossary({column.title: column.meaning for column in section.columns}),
            ]
    return pages.page(analysis.name, *parts, pages.paragraphs([_UNIT]))


def _title(analysis: Any) -> str:
    how = "quantized" if analysis.bits is None else f"quantized with {analysis.bits} bits"
    return f"{analysis.name}, {how}, on {analysis.images} images"


def _header(section: _Section) -> tuple[str, ...]:
    return (*_TEXTS, *(column.title for column in section.columns))


def _words(section: _Section) -> int:
    return len(_TEXTS) + (section is _BRANCHES)


def _lines(section: _Section, analysis: Any) -> list[tuple[str, ...]]:
    return [
        (row.name, row.kind, *(column.cell(item) for column in section.columns))
        for row, item in section.items(analysis)
    ]
