"""What of a model is quantized, with how many bits, and what endangers it."""

import dataclasses

import numpy as np

from repq_tf.branches import NumpyReading
from repq_tf.graphs import Graph, Node, read_graph
from repq_tf.keras_api import Array, keras
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.layers.freezing import frozen_note
from repq_tf.quantization.grids import known_name, own_quantizer
from repq_tf.quantization.weights import bits_of_a_weight, entropy_of_weights
from repq_tf.text import columns

# Of a batch norm: beyond, a channel is nearly constant.
LARGE_GAIN = 100.0
_LEGEND = (
    "BN gain: largest |gamma| / sqrt(variance + epsilon) of the batch norms in the kernel",
    "max/rms: largest weight of the merged kernel (of its worst channel) over the root mean"
    " square; the larger, the fewer levels most weights have",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of the table.

    Attributes:
        name: the layer.
        kind: its class.
        weight: such as "8 bits, per channel".
        output: such as "8 bits, unsigned"; or why there is no quantizer.
        gain: the largest `|gamma| / sqrt(variance + epsilon)` of its batch norms, or None.
        peak: the merged kernel's max/rms (the worst channel's, where steps are per
            channel), or None.
        frozen: which of its parts training leaves as they are: "", "all", or their names.
        warning: what endangers the bits asked for, or "".
    """

    name: str
    kind: str
    weight: str
    output: str
    gain: float | None = None
    peak: float | None = None
    frozen: str = ""
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class QuantizationTable:
    """The rows; `str(table)` is the text."""

    rows: tuple

    @property
    def warnings(self) -> list[str]:
        """The warnings, with the layers' names."""
        return [f"{row.name}: {row.warning}" for row in self.rows if row.warning]

    def __str__(self) -> str:
        header: tuple[str, ...]
        header = ("layer", "class", "weights", "output", "BN gain", "max/rms", "frozen")
        body: list[tuple[str, ...]] = [
            (
                *(row.name, row.kind, row.weight, row.output),
                *(_number(row.gain), _number(row.peak), row.frozen),
            )
            for row in self.rows
        ]
        if not any(row.frozen for row in self.rows):
            header, *body = (line[:-1] for line in (header, *body))
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([columns([header, *body]), *_LEGEND, *warnings])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def quantization_table(model: keras.Model) -> QuantizationTable:
    """Describes a quantized model, layer by layer.

    Args:
        model: what `repq_tf.quantize` returned.

    Returns:
        A `QuantizationTable`; print it.
    """
    graph = read_graph(model)
    rows = []
    for node in graph.nodes.values():
        if type(node.layer) is Quantize:
            continue
        rows.append(_row(graph, node))
    return QuantizationTable(tuple(rows))


def _row(graph: Graph, node: Node) -> Row:
    layer, kind, name = node.layer, type(node.layer).__name__, known_name(graph, node)
    output, frozen = _output(graph, node), frozen_note(node.layer)
    if not isinstance(layer, ReparamConv):
        return Row(name, kind, "", output, frozen=frozen)
    if layer.weight_quantizer is None:
        return Row(name, kind, "floating point", output, frozen=frozen)
    weight = f"{layer.weight_bits} bits, per {'channel' if layer.per_channel else 'tensor'}"
    weight += "" if layer.weight_levels == "uniform" else f", {layer.weight_levels} levels"
    kernel = layer.inner.merge(NumpyReading()).kernel
    weight += ", wide tap" if layer.wide_tap else ""
    if layer.wide_tap or layer.weight_levels == "cluster":
        weight += f": {bits_of_a_weight(layer, kernel):.2f} a weight"
        weight += f", entropy {entropy_of_weights(layer, kernel):.2f}"
    gain, peak = largest_gain(layer), peak_to_rms(kernel, layer.per_channel)
    warning = _warning(layer, gain, peak)
    return Row(name, kind, weight, output, gain, peak, frozen, warning)


def _output(graph: Graph, node: Node) -> str:
    consumers = graph.consumers(node.name)
    quantizer = own_quantizer(graph, node)
    if quantizer is not None:
        signed = "signed" if quantizer.signed else "unsigned"
        mirrored = ", mirrored" if quantizer.activation_quantizer.mirrored else ""
        return f"{quantizer.bits} bits, {signed}{mirrored}"
    fused = [c for c in consumers if isinstance(c.layer, keras.layers.Activation)]
    if fused and len(consumers) == 1:
        return f"fused with {fused[0].name}"
    if isinstance(node.layer, ReparamConv) or node.is_input:
        return "floating point"
    return "none: shares its input's scale"


def largest_gain(block: ReparamConv) -> float | None:
    """The largest `|gamma| / sqrt(variance + epsilon)` among merged batch norms, or None."""
    reading = NumpyReading()
    gains = [
        np.abs(node.gain_and_shift(reading=reading)[0]).max()
        for node in block.merged_batch_norms
    ]
    return float(max(gains)) if gains else None


def peak_to_rms(kernel: Array, per_channel: bool) -> float:
    """A kernel's max/rms; the worst channel's where steps are per channel."""
    rows = kernel.reshape(-1, kernel.shape[-1]) if per_channel else kernel.reshape(-1, 1)
    peak, rms = np.abs(rows).max(axis=0), np.sqrt(np.mean(rows**2, axis=0))
    return float(np.max(peak / np.where(rms > 0, rms, np.inf)))


def _warning(block: ReparamConv, gain: float | None, peak: float) -> str:
    found = []
    if gain is not None and gain > LARGE_GAIN:
        found.append(
            f"a batch norm's gain is {gain:.3g}: a channel is nearly constant, and its tap "
            "may dwarf the others in the merged kernel"
        )
    assert block.weight_quantizer is not None  # the row is that of a quantized block
    bound = max(16.0, 2.5 * block.weight_quantizer.high)
    if peak > bound and not block.wide_tap:
        found.append(
            f"max/rms of the merged kernel is {peak:.3g}, much for {block.weight_bits} bits: "
            "most weights round to few levels; expect a low starting accuracy"
        )
    return "; ".join(found)
