"""A `Summary` as text and as a page."""

from collections.abc import Iterator
from typing import Any

from repq_tf.inspection.pages import glossary, heading, page, paragraphs, table
from repq_tf.text import columns, quantity

_HEADER = (
    "layer",
    "class",
    "output",
    "weight bits",
    "entropy",
    "input bits",
    "output bits",
    "trained",
    "deployed",
    "MACs",
    "bit-ops",
    "bytes",
    "weight steps",
    "output step",
)
_TEXTS = 3  # the first columns are words, the others numbers
_GLOSSARY = {
    "weight bits": "of the kernel, with those of wide taps and codebooks; float: it is not"
    " quantized",
    "entropy": "of the kernel's levels, in bits: what a weight would take, compressed",
    "input bits": "of the tensor that the layer reads",
    "output bits": "of the tensor that it makes",
    "trained": "trainable parameters: those of all branches, of batch norms and of steps",
    "deployed": "parameters after merging: one kernel and one bias for each block",
    "MACs": "multiply-accumulates for one image, after merging",
    "bit-ops": "MACs x weight bits x input bits, 32 bits for float",
    "bytes": "of the deployed parameters in the file",
    "weight steps": "distance of neighbouring levels of the kernel; smallest to largest of its"
    " channels",
    "output step": "the same of the output: a level times the step is the value",
    "k, M, G, T": "thousand, million, 10^9, 10^12",
}


def as_text(summary: Any) -> str:
    """The table in columns."""
    lines = [_HEADER, *_body(summary), _foot(summary)]
    right = range(_TEXTS, len(_HEADER))
    return "\n".join([f"{summary.name}", columns(lines, right), *_notes(summary)])


def as_html(summary: Any) -> str:
    """The table as an HTML page."""
    return page(
        summary.name,
        table(_HEADER, _body(summary), _TEXTS, _foot(summary)),
        paragraphs(_notes(summary)),
        heading("Glossary"),
        glossary(_GLOSSARY),
    )


def _body(summary: Any) -> list[tuple[str, ...]]:
    return [
        (
            row.name,
            row.kind,
            "x".join("?" if size is None else str(size) for size in row.shape),
            *_bits(row),
            f"{row.trained:,}" if row.trained else "",
            f"{row.deployed:,}" if row.deployed else "",
            _counted(row.macs),
            _counted(row.bit_operations),
            f"{row.size:,}" if row.size else "",
            _range(row.weight_steps),
            "" if row.output_step is None else f"{row.output_step:.3g}",
        )
        for row in summary.layers
    ]


def _bits(row: Any) -> Iterator[str]:
    has_weights = row.deployed or row.macs
    few = row.bits_a_weight
    weight_bits = row.weight_bits if few in (None, row.weight_bits) else f"{few:.2f}"
    entropy = "" if row.weight_entropy is None else f"{row.weight_entropy:.2f}"
    for bits, shown in (
        (weight_bits, has_weights),
        (entropy, True),
        (row.input_bits, has_weights),
        (row.output_bits, True),
    ):
        yield ("float" if bits is None else str(bits)) if shown else ""


def _counted(number: int | None) -> str:
    return "?" if number is None else quantity(number) if number else ""


def _range(steps: tuple[float, float] | None) -> str:
    if steps is None:
        return ""
    low, high = (f"{step:.3g}" for step in steps)
    return low if low == high else f"{low} to {high}"


def _foot(summary: Any) -> tuple[str, ...]:
    totals = summary.totals
    return (
        "total",
        *("",) * 6,
        f"{totals['trained']:,}",
        f"{totals['deployed']:,}",
        quantity(totals["macs"]),
        quantity(totals["bit_operations"]),
        f"{totals['size']:,}",
        "",
        "",
    )


def _notes(summary: Any) -> list[str]:
    if not summary.unknown:
        return []
    return [f"MACs of these layers are not known and not in the total: {summary.unknown}"]
