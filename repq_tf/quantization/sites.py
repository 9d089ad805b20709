"""The sites of a float model: each will be one operator of the integer file.

Convolutions (with the batch norm and the activation that fuse into them), operators that
store a tensor of a new scale, operators that keep the scale of their input, and operators
whose output scale the runtime prescribes.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from repq_tf.graphs import Graph, Node, OperationLayer, shared_calls
from repq_tf.keras_api import Layer, keras
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import STOCK, normalized_axis
from repq_tf.quantization.grids import input_layers
from repq_tf.quantization.operators import (
    ACTIVATIONS,
    APART,
    FUSED,
    OPERATORS,
    TWO_INPUTS,
    Operator,
    activation_name,
    find_operator,
    is_one_pixel,
)
from repq_tf.quantization.rules import LayerBits

_layers = keras.layers
_ADVICE = {
    **dict.fromkeys(
        ("GroupNormalization", "LayerNormalization", "RMSNormalization"),
        "its mean and deviation are those of each image, which integers do not hold; train "
        "with BatchNormalization in its place",
    ),
    **dict.fromkeys(
        ("Attention", "AdditiveAttention", "GroupQueryAttention", "MultiHeadAttention"),
        "the file has no product of two computed matrices; end the quantized model before it",
    ),
    **dict.fromkeys(
        ("Normalization", "Rescaling"), "its constants must be the same at all pixels"
    ),
    **dict.fromkeys(
        ("Bidirectional", "ConvLSTM2D", "GRU", "LSTM", "RNN", "SimpleRNN", "TimeDistributed"),
        "the file has no loop over time; use causal convolutions (Conv1D), or end the "
        "quantized model before it",
    ),
    "Lambda": "write what it computes with keras.ops on the tensors, outside of a layer",
    "OperationLayer": "no layer means the same; use layers, or leave it to the caller",
}
_SUPPORTED = sorted(
    {c.__name__ for c in (*STOCK, *OPERATORS)}
    | {"Activation", "BatchNormalization", "ReLU", "the blocks of repq_tf.layers"}
)


@dataclasses.dataclass
class Site:
    """One operator of the quantized model.

    Attributes:
        name: the source layer's name.
        kind: "input", "convolution", "new_scale", "same_scale" or "fixed".
        layer: the source layer.
        inputs: names of the sites it reads.
        operator: the `Operator` that describes it, if any.
        batch_norm: the BatchNormalization that is fused into it, if any.
        activation: "linear", "relu" or "relu6", fused.
        fused: names of the source layers that are fused into it.
        group: the name of the quantizer group its output belongs to.
        bits: a `LayerBits`, once settled.
        signed: whether its output can be negative.
        mirrored: whether it is rarely so, on a grid of so few bits that one level matters.
        step: the fixed step of its output's grid; None to learn it.
    """

    name: str
    kind: str
    layer: Any
    inputs: list
    operator: Operator | None = None
    batch_norm: Any = None
    activation: str = "linear"
    fused: list = dataclasses.field(default_factory=list)
    group: str = ""
    bits: LayerBits = LayerBits()
    signed: bool = True
    mirrored: bool = False
    step: float | None = None


@dataclasses.dataclass
class Placement:
    """The sites of a model in topological order.

    Attributes:
        sites: sites by name.
        alias: for each node of the source graph, the site that makes its tensor.
        ends: for each site that makes an output of the model, the output's name.
        groups: the `Group`s of sites by name, once they are formed.
        inputs: for each site of kind "input", the name of the model's input: of itself, or of
            that which layers prepare, the last of which the site is then.
        preparing: the names of the nodes before such a site.
    """

    sites: dict
    alias: dict
    ends: dict = dataclasses.field(default_factory=dict)
    groups: dict = dataclasses.field(default_factory=dict)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    preparing: set[str] = dataclasses.field(default_factory=set)

    def has(self, layer: Layer) -> bool:
        """Whether a layer is that of a site."""
        return any(site.layer is layer for site in self.sites.values())

    def origins(self, group: str) -> list[Site]:
        """The sites whose outputs a group's quantizer rounds."""
        return self.groups[group].origins


class _Refusal(ValueError):
    """A layer that cannot be quantized, and why."""

    def __init__(self, node: Node, why: str) -> None:
        layer = node.layer
        kind = layer.kind if isinstance(layer, OperationLayer) else type(layer).__name__
        super().__init__(node.part_of or node.name, kind, why)


def _refuse(node: Node, why: str) -> NoReturn:
    raise _Refusal(node, why)


def _message(refusals: Sequence[_Refusal]) -> str:
    """One line for each reason, with all the layers that it is that of."""
    names: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        name, *reason = refusal.args
        names.setdefault((reason[0], reason[1]), []).append(name)
    lines = []
    for (kind, why), found in names.items():
        plural = "s" if len(found) > 1 else ""
        lines.append(f"layer{plural} {', '.join(map(repr, found))} ({kind}): {why}")
    if len(lines) == 1:
        return lines[0]
    return "\n  ".join((f"{len(refusals)} layers cannot be quantized:", *lines))


def find_sites(graph: Graph) -> Placement:
    """Reads a graph into sites.

    Raises:
        ValueError: layers cannot be quantized; all are named, each with what to do.
    """
    placement = Placement({}, {})
    for node in filter(lambda node: node.is_input, graph.nodes.values()):
        *before, last = node, *input_layers(graph, node)
        placement.inputs[last.name] = node.name
        placement.preparing.update(item.name for item in before)
        placement.alias.update({item.name: last.name for item in before})
    refusals: list[_Refusal] = []
    apart = _activations_apart(graph)
    for node in graph.nodes.values():
        if node.name in placement.preparing:
            continue
        try:
            _add_site(placement, graph, node, node.name not in apart)
        except _Refusal as refusal:
            refusals.append(refusal)
            placement.sites[node.name] = Site(node.name, "fixed", node.layer, [])
            placement.alias[node.name] = node.name
    if refusals:
        raise ValueError(_message(refusals))
    for tensor, name in zip(graph.output_tensors, graph.output_names, strict=True):
        site = placement.sites[placement.alias[tensor.node]]
        if site.kind != "input" and name not in placement.ends.values():
            placement.ends.setdefault(site.name, name)
    return placement


def _activations_apart(graph: Graph) -> set[str]:
    """The activations behind calls of one layer that not all of its calls have behind them."""
    apart: set[str] = set()
    for calls in shared_calls(graph):
        behind = [_activation_behind(graph, node) for node in calls]
        kinds = {None if node is None else activation_name(node.layer) for node in behind}
        if len(kinds) > 1:
            apart |= {node.name for node in behind if node is not None}
    return apart


def _activation_behind(graph: Graph, node: Node) -> Node | None:
    """The activation that alone reads a convolution, or the batch norm behind it."""
    readers = graph.consumers(node.name)
    if len(readers) != 1 or graph.is_output(node.name):
        return None
    (reader,) = readers
    if type(reader.layer) is _layers.BatchNormalization:
        return _activation_behind(graph, reader)
    return reader if type(reader.layer) in (_layers.ReLU, _layers.Activation) else None


def _add_site(placement: Placement, graph: Graph, node: Node, fuses: bool) -> None:
    layer, sites, alias = node.layer, placement.sites, placement.alias
    inputs = [alias[tensor.node] for tensor in node.inputs]

    def add(kind: str, **fields: Any) -> Site:
        site = Site(node.name, kind, layer, inputs, **fields)
        sites[node.name] = site
        alias[node.name] = node.name
        return site

    def fuse(kinds: Collection[str]) -> Site | None:
        """The site before, if it is of one of the kinds and nobody else reads it."""
        source = node.inputs[0].node
        before = sites[alias[source]]
        alone = len(graph.consumers(source)) == 1 and not graph.is_output(source)
        takes_one = before.kind == "convolution" or isinstance(before.layer, TWO_INPUTS)
        free = before.activation == "linear" and before.kind in kinds and takes_one
        return before if alone and free else None

    def fused_into(before: Site, **fields: Any) -> None:
        for key, value in fields.items():
            setattr(before, key, value)
        before.fused.append(node.name)
        alias[node.name] = before.name

    operator = find_operator(layer)
    if node.name in placement.inputs:
        add("input")
    elif isinstance(layer, ReparamConv):
        if layer.weight_bits is not None:
            _refuse(node, "it is quantized already; quantize the float model")
        add("convolution", activation=_check_activation(node))
    elif getattr(layer, "data_format", None) == "channels_first":
        _refuse(node, 'data_format must be "channels_last"')
    elif why := _transposed_refusal(layer):
        _refuse(node, why)
    elif type(layer) in STOCK:
        add("convolution", activation=_check_activation(node))
    elif isinstance(layer, _layers.BatchNormalization):
        if normalized_axis(layer) not in (-1, layer.input_spec.ndim - 1):
            _refuse(node, f"axis must be the channels' (-1). Received: {layer.axis}")
        before = fuse(("convolution",))
        if before is None or not isinstance(before.layer, STOCK) or before.batch_norm:
            _refuse(node, f"it must have 2 or 4 axes. Received: {layer.input_spec.ndim}")
        fused_into(before, batch_norm=layer)
    elif operator is not None:
        why = operator.check and operator.check(layer)
        if why:
            _refuse(node, why)
        if layer.weights and placement.has(layer):
            _refuse(node, "called more than once; give each call a layer of its own")
        if isinstance(layer, TWO_INPUTS) and len(inputs) != 2:
            _refuse(node, f"it must have two inputs; write a chain. Received: {len(inputs)}")
        if is_one_pixel(layer):
            # The mean of a single pixel is that pixel, on its own grid.
            add("same_scale")
        else:
            add(operator.kind, operator=operator)
    elif type(layer) in (_layers.ReLU, _layers.Activation):
        activation = activation_name(layer)
        fuses = fuses and activation in FUSED
        before = fuse(("convolution", "new_scale")) if fuses else None
        if activation not in FUSED:
            allowed = (*FUSED, *ACTIVATIONS, *APART)
            _refuse(node, f"activation must be one of {allowed}. Received: {activation}")
        elif before is not None:
            fused_into(before, activation=activation)
        else:
            # Never its own grid: the runtime would rescale with 8-bit precision.
            add("same_scale", activation=activation)
    else:
        advice = _ADVICE.get(type(layer).__name__, f"layers that can: {', '.join(_SUPPORTED)}")
        _refuse(node, f"it cannot be quantized; {advice}")


def _transposed_refusal(layer: Layer) -> str | None:
    """Why a transposed convolution cannot be quantized; None if it can, or is another layer."""
    if type(layer) is not _layers.Conv2DTranspose:
        return None
    if len(set(layer.strides)) > 1:
        return f"its strides must be equal. Received: {tuple(layer.strides)}"
    if layer.output_padding is not None:
        return f"output_padding must be None. Received: {layer.output_padding}"
    if tuple(layer.dilation_rate) != (1, 1):
        return f"dilation_rate must be 1. Received: {tuple(layer.dilation_rate)}"
    return None


def _check_activation(node: Node) -> str:
    activation = activation_name(node.layer)
    if activation not in FUSED:
        allowed = (*FUSED, *APART)
        _refuse(node, f"activation must be one of {allowed}. Received: {activation}")
    return activation
