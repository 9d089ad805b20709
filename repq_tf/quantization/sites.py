"""The sites of a float model: each will be one operator of the integer file.

Convolutions (with the batch norm and the activation that fuse into them), operators that
store a tensor of a new scale, operators that keep the scale of their input, and operators
whose output scale the runtime prescribes.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NoReturn

from repq_tf.graphs import Graph, Node
from repq_tf.keras_api import keras
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import STOCK, normalized_axis
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
    step: float | None = None


@dataclasses.dataclass
class Placement:
    """The sites of a model in topological order.

    Attributes:
        sites: sites by name.
        alias: for each node of the source graph, the site that makes its tensor.
        ends: for each site that makes an output of the model, the output's name.
        groups: the `Group`s of sites by name, once they are formed.
    """

    sites: dict
    alias: dict
    ends: dict = dataclasses.field(default_factory=dict)
    groups: dict = dataclasses.field(default_factory=dict)

    def origins(self, group: str) -> list[Site]:
        """The sites whose outputs a group's quantizer rounds."""
        return self.groups[group].origins


def _refuse(node: Node | Site, why: str) -> NoReturn:
    raise ValueError(f"layer {node.name!r} ({type(node.layer).__name__}): {why}")


def find_sites(graph: Graph) -> Placement:
    """Reads a graph into sites.

    Raises:
        ValueError: a layer cannot be quantized; it is named.
    """
    placement = Placement({}, {})
    seen: dict[int, str] = {}
    for node in graph.nodes.values():
        if node.layer.weights and seen.setdefault(id(node.layer), node.name) != node.name:
            _refuse(node, "it is called more than once; give each call a layer of its own")
        _add_site(placement, graph, node)
    for tensor, name in zip(graph.output_tensors, graph.output_names, strict=True):
        site = placement.sites[placement.alias[tensor.node]]
        if site.kind != "input" and name not in placement.ends.values():
            placement.ends.setdefault(site.name, name)
    return placement


def _add_site(placement: Placement, graph: Graph, node: Node) -> None:
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
    if node.is_input:
        add("input")
    elif isinstance(layer, ReparamConv):
        if layer.weight_bits is not None:
            _refuse(node, "it is quantized already; quantize the float model")
        add("convolution", activation=_check_activation(node))
    elif getattr(layer, "data_format", None) == "channels_first":
        _refuse(node, 'data_format must be "channels_last"')
    elif type(layer) in STOCK:
        add("convolution", activation=_check_stock(node))
    elif isinstance(layer, _layers.BatchNormalization):
        before = fuse(("convolution",))
        if before is None or not isinstance(before.layer, STOCK) or before.batch_norm:
            _refuse(node, "a batch norm must follow a convolution that nobody else reads")
        if normalized_axis(layer) not in (-1, layer.input_spec.ndim - 1):
            _refuse(node, f"axis must be the channels' (-1). Received: {layer.axis}")
        fused_into(before, batch_norm=layer)
    elif operator is not None:
        why = operator.check and operator.check(layer)
        if why:
            _refuse(node, why)
        if isinstance(layer, TWO_INPUTS) and len(inputs) != 2:
            _refuse(node, f"it must have two inputs; write a chain. Received: {len(inputs)}")
        if is_one_pixel(layer):
            # The mean of a single pixel is that pixel, on its own grid.
            add("same_scale")
        else:
            add(operator.kind, operator=operator)
    elif type(layer) in (_layers.ReLU, _layers.Activation):
        activation = activation_name(layer)
        before = fuse(("convolution", "new_scale")) if activation in FUSED else None
        if activation not in FUSED:
            allowed = (*FUSED, *ACTIVATIONS, *APART)
            _refuse(node, f"activation must be one of {allowed}. Received: {activation}")
        elif before is not None:
            fused_into(before, activation=activation)
        else:
            # Never its own grid: the runtime would rescale with 8-bit precision.
            add("same_scale", activation=activation)
    else:
        _refuse(node, f"it cannot be quantized; layers that can: {', '.join(_SUPPORTED)}")


def _check_stock(node: Node) -> str:
    layer = node.layer
    if any(rate != 1 for rate in getattr(layer, "dilation_rate", ())):
        _refuse(node, f"dilation_rate must be 1. Received: {layer.dilation_rate}")
    return _check_activation(node)


def _check_activation(node: Node) -> str:
    activation = activation_name(node.layer)
    if activation not in FUSED:
        allowed = (*FUSED, *APART)
        _refuse(node, f"activation must be one of {allowed}. Received: {activation}")
    return activation
