"""What is quantized where: every stored tensor gets one quantizer.

The graph of a float model is read into *sites*: convolutions (with the batch norm and the
activation that fuse into them), operators that store a tensor of a new scale, operators
that keep the scale of their input, and operators whose output scale the runtime
prescribes. Tensors that must share one scale form a group with one quantizer.
"""

import dataclasses
from typing import Any

from repq_tf.keras_api import keras
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import normalized_axis
from repq_tf.quantization.config import LayerBits, apply_rules

_layers = keras.layers
_STOCK = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Dense)
_NEW_SCALE = (_layers.Add, _layers.GlobalAveragePooling2D)
_SAME_SCALE = (
    _layers.AveragePooling2D,
    _layers.Concatenate,
    _layers.Dropout,
    _layers.Flatten,
    _layers.GlobalMaxPooling2D,
    _layers.MaxPooling2D,
    _layers.Reshape,
    _layers.ZeroPadding2D,
)
_SUPPORTED = sorted(
    {c.__name__ for c in (*_STOCK, *_NEW_SCALE, *_SAME_SCALE)}
    | {"Activation", "BatchNormalization", "ReLU", "Softmax", "the blocks of repq_tf.layers"}
)
FUSED = ("linear", "relu", "relu6")


@dataclasses.dataclass
class Site:
    """One operator of the quantized model.

    Attributes:
        name: the source layer's name.
        kind: "input", "convolution", "new_scale", "same_scale" or "fixed".
        layer: the source layer; None for the softmax split off a Dense.
        inputs: names of the sites it reads.
        batch_norm: the BatchNormalization that is fused into it, if any.
        activation: "linear", "relu" or "relu6", fused.
        fused: names of the source layers that are fused into it.
        group: the name of the quantizer group its output belongs to.
        bits: a `LayerBits`, once settled.
        signed: whether its output can be negative.
    """

    name: str
    kind: str
    layer: Any
    inputs: list
    batch_norm: Any = None
    activation: str = "linear"
    fused: list = dataclasses.field(default_factory=list)
    group: str = ""
    bits: LayerBits = LayerBits()
    signed: bool = True


@dataclasses.dataclass
class Placement:
    """The sites of a model in topological order.

    Attributes:
        sites: sites by name.
        alias: for each node of the source graph, the site that makes its tensor.
    """

    sites: dict
    alias: dict

    def origins(self, group):
        """The sites whose outputs a group's quantizer rounds."""
        return [
            site
            for site in self.sites.values()
            if site.group == group and site.kind in ("input", "convolution", "new_scale")
        ]


def _refuse(node, why):
    raise ValueError(f"layer {node.name!r} ({type(node.layer).__name__}): {why}")


def activation_name(layer):
    """The name of the activation that a layer is or applies."""
    if isinstance(layer, _layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        limit = layer.max_value if layer.max_value is None else float(layer.max_value)
        names = {None: "relu", 6.0: "relu6"}
        return names.get(limit, "ReLU") if plain else "ReLU with a slope or threshold"
    if isinstance(layer, _layers.Softmax):
        return "softmax"
    name = keras.activations.serialize(layer.activation)
    return name if isinstance(name, str) else name.get("config", str(name))


def find_sites(graph):
    """Reads a graph into sites.

    Raises:
        ValueError: a layer cannot be quantized; it is named.
    """
    placement = Placement({}, {})
    seen = {}
    for node in graph.nodes.values():
        if node.layer.weights and seen.setdefault(id(node.layer), node.name) != node.name:
            _refuse(node, "it is called more than once; give each call a layer of its own")
        _add_site(placement, graph, node)
    return placement


def _add_site(placement, graph, node):
    layer, sites, alias = node.layer, placement.sites, placement.alias
    inputs = [alias[tensor.node] for tensor in node.inputs]

    def add(kind, **fields):
        site = Site(node.name, kind, layer, inputs, **fields)
        sites[node.name] = site
        alias[node.name] = node.name
        return site

    def fuse(kinds):
        """The site before, if it is of one of the kinds and nobody else reads it."""
        source = node.inputs[0].node
        before = sites[alias[source]]
        alone = len(graph.consumers(source)) == 1 and not graph.is_output(source)
        takes_one = before.kind == "convolution" or isinstance(before.layer, _layers.Add)
        free = before.activation == "linear" and before.kind in kinds and takes_one
        return before if alone and free else None

    def fused_into(before, **fields):
        for key, value in fields.items():
            setattr(before, key, value)
        before.fused.append(node.name)
        alias[node.name] = before.name

    if node.is_input:
        add("input")
    elif isinstance(layer, ReparamConv):
        if layer.weight_bits is not None:
            _refuse(node, "it is quantized already; quantize the float model")
        activation = activation_name(layer)
        if activation not in FUSED:
            _refuse(node, f"activation must be one of {FUSED}. Received: {activation}")
        add("convolution", activation=activation)
    elif getattr(layer, "data_format", None) == "channels_first":
        _refuse(node, 'data_format must be "channels_last"')
    elif type(layer) in _STOCK:
        activation = _check_stock(node)
        if activation == "softmax":
            add("convolution")
            name = f"{node.name}_softmax"
            sites[name] = Site(name, "fixed", None, [node.name], signed=False)
            alias[node.name] = name
        else:
            add("convolution", activation=activation)
    elif isinstance(layer, _layers.BatchNormalization):
        before = fuse(("convolution",))
        if before is None or not isinstance(before.layer, _STOCK) or before.batch_norm:
            _refuse(node, "a batch norm must follow a convolution that nobody else reads")
        if normalized_axis(layer) not in (-1, layer.input_spec.ndim - 1):
            _refuse(node, f"axis must be the channels' (-1). Received: {layer.axis}")
        fused_into(before, batch_norm=layer)
    elif type(layer) in (_layers.ReLU, _layers.Activation, _layers.Softmax):
        activation = activation_name(layer)
        before = fuse(("convolution", "new_scale")) if activation in FUSED else None
        if activation == "softmax" and getattr(layer, "axis", -1) != -1:
            _refuse(node, f"a softmax's axis must be -1. Received: {layer.axis}")
        elif activation == "softmax":
            add("fixed", signed=False)
        elif activation not in FUSED:
            _refuse(node, f"activation must be one of {(*FUSED, 'softmax')}")
        elif before is not None:
            fused_into(before, activation=activation)
        else:
            # The runtime rescales integers with eight bits of precision: never, then.
            add("same_scale", activation=activation)
    elif isinstance(layer, _layers.Add) and len(inputs) != 2:
        _refuse(node, f"it must add two tensors; write a chain. Received: {len(inputs)}")
    elif type(layer) in _NEW_SCALE:
        # The mean of a single pixel is that pixel, on its own grid.
        add("same_scale" if _is_one_pixel(layer) else "new_scale")
    elif type(layer) in _SAME_SCALE:
        add("same_scale")
    else:
        _refuse(node, f"it cannot be quantized; layers that can: {', '.join(_SUPPORTED)}")


def _is_one_pixel(layer):
    if not isinstance(layer, _layers.GlobalAveragePooling2D):
        return False
    try:
        return tuple(layer.input.shape[1:3]) == (1, 1)
    except (AttributeError, ValueError):  # called more than once: several inputs
        return False


def _check_stock(node):
    layer = node.layer
    if any(rate != 1 for rate in getattr(layer, "dilation_rate", ())):
        _refuse(node, f"dilation_rate must be 1. Received: {layer.dilation_rate}")
    activation = activation_name(layer)
    allowed = (*FUSED, "softmax") if isinstance(layer, _layers.Dense) else FUSED
    if activation not in allowed:
        _refuse(node, f"activation must be one of {allowed}. Received: {activation}")
    return activation


def place(graph, bits, rules, signed_inputs):
    """Finds the sites, groups tensors that share a scale and settles everyone's bits.

    First and last layers (kernels, the model's input, what the last layers read, and
    the model's outputs) get 8 bits unless a rule says otherwise.

    Args:
        graph: the float model's graph.
        bits: the default `LayerBits`.
        rules: pairs from `check_rules`.
        signed_inputs: `{input name: whether it has negative values}`.

    Returns:
        A `Placement`.
    """
    placement = find_sites(graph)
    sites = placement.sites
    _group(sites)
    for site in sites.values():
        partners = [s for s in sites.values() if s.group == site.group and s.kind == "fixed"]
        if partners and placement.origins(site.group):
            raise ValueError(
                f"layer {partners[0].name!r} (Softmax): its scale is fixed by the runtime, so "
                "it cannot share one with other tensors, as a concatenation demands"
            )
    _sign(placement, signed_inputs)
    edge_groups, edge_kernels = _edges(placement, graph)
    defaults = {}
    for site in sites.values():
        defaults[site.name] = dataclasses.replace(
            bits,
            weight_bits=8 if site.name in edge_kernels else bits.weight_bits,
            activation_bits=8 if site.group in edge_groups else bits.activation_bits,
        )
    names = [site.name for site in sites.values() if site.kind not in ("same_scale", "fixed")]
    for name, value in apply_rules(rules, names, defaults).items():
        sites[name].bits = value
    for group in {site.group for site in sites.values() if site.kind != "fixed"}:
        given = [site.bits.activation_bits for site in placement.origins(group)]
        shared = None if None in given else max(given, default=8)
        for site in sites.values():
            if site.group == group:
                site.bits = dataclasses.replace(site.bits, activation_bits=shared)
    return placement


def _group(sites):
    """Union-find: operators that keep the scale join the groups of all their inputs."""
    parent = {name: name for name in sites}

    def find(name):
        while parent[name] != name:
            name = parent[name]
        return name

    for site in sites.values():
        if site.kind == "same_scale":
            for source in site.inputs:
                parent[find(site.name)] = find(source)
    for site in sites.values():
        site.group = find(site.name)


def _sign(placement, signed_inputs):
    sites = placement.sites
    for site in sites.values():
        if site.kind == "input":
            site.signed = signed_inputs[site.name]
        elif site.kind == "fixed" or site.activation != "linear":
            site.signed = False
        elif site.kind == "convolution":
            site.signed = True
        else:
            site.signed = any(sites[source].signed for source in site.inputs)
    for group in {site.group for site in sites.values()}:
        signed = any(site.signed for site in placement.origins(group))
        for site in sites.values():
            if site.group == group and site.kind != "fixed":
                site.signed = signed


def _edges(placement, graph):
    """Groups and kernels at the model's ends."""
    sites = placement.sites
    inputs = {site.group for site in sites.values() if site.kind == "input"}
    kernels = {
        site.name
        for site in sites.values()
        if site.kind == "convolution" and any(sites[s].group in inputs for s in site.inputs)
    }
    groups, waiting = set(inputs), [n for n in graph.nodes if graph.is_output(n)]
    waiting = [placement.alias[name] for name in waiting]
    visited = set()
    while waiting:
        site = sites[waiting.pop()]
        if site.name in visited:
            continue
        visited.add(site.name)
        groups.add(site.group)
        if site.kind == "convolution":
            kernels.add(site.name)
            groups.update(sites[source].group for source in site.inputs)
        else:
            waiting.extend(site.inputs)
    return groups, kernels
