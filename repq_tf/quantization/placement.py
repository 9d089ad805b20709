"""What is quantized where: every stored tensor gets one quantizer.

Tensors that must share one scale form a group with one quantizer; groups get their bits
and their sign here.
"""

import dataclasses

from repq_tf.quantization.config import apply_rules
from repq_tf.quantization.sites import find_sites


def place(graph, bits, rules, signed_inputs, steps=()):
    """Finds the sites, groups tensors that share a scale and settles everyone's bits.

    First and last layers (kernels, the model's input, what the last layers read, and
    the model's outputs) get 8 bits (activations 16, where that is the default) unless a rule
    says otherwise, and so do tensors that only a PReLU reads: it, not the convolution before
    it, makes the result that is rounded.

    Args:
        graph: the float model's graph.
        bits: the default `LayerBits`.
        rules: pairs from `check_rules`.
        signed_inputs: `{input name: whether it has negative values}`.
        steps: pairs of a node's name and the fixed step of its tensor's grid.

    Returns:
        A `Placement`.
    """
    placement = find_sites(graph)
    sites = placement.sites
    _group(sites)
    for site in sites.values():
        partners = [s for s in sites.values() if s.group == site.group and s.kind == "fixed"]
        kinds = {partner.operator for partner in partners}
        if len(kinds) > 1 or (kinds and placement.origins(site.group)):
            layer = partners[0].layer
            raise ValueError(
                f"layer {partners[0].name!r} ({type(layer).__name__}): its scale is fixed by "
                "the runtime, so it cannot share one with other tensors, as a concatenation "
                "demands"
            )
    _sign(placement, signed_inputs)
    edge_groups, edge_kernels = _edges(placement, graph)
    wide_groups = edge_groups | _intermediates(placement, graph)
    defaults, wide = {}, max(8, bits.activation_bits)
    for site in sites.values():
        defaults[site.name] = dataclasses.replace(
            bits,
            weight_bits=8 if site.name in edge_kernels else bits.weight_bits,
            activation_bits=wide if site.group in wide_groups else bits.activation_bits,
        )
    wholes = {
        name: graph.nodes[name].part_of or name
        for name, site in sites.items()
        if site.kind not in ("same_scale", "fixed")
    }
    weighted = {site.name for site in sites.values() if site.kind == "convolution"}
    for name, value in apply_rules(rules, wholes, defaults, weighted).items():
        sites[name].bits = value
    outputs = {whole: sites[name].bits.activation_bits for name, whole in wholes.items()}
    floats = [name for name in sites if outputs.get(graph.nodes[name].part_of, 8) is None]
    for group in {site.group for site in sites.values() if site.kind != "fixed"}:
        given = [site.bits.activation_bits for site in placement.origins(group)]
        shared = None if None in given else max(given, default=8)
        for site in sites.values():
            if site.group == group:
                site.bits = dataclasses.replace(site.bits, activation_bits=shared)
    _fix_steps(placement, steps)
    _check_wide(sites.values())
    _prescribe(sites, floats)
    return placement


def _fix_steps(placement, steps):
    """Fixes the grids of some tensors, and of all that must share them."""
    for name, step in steps:
        group = placement.sites[placement.alias[name]].group
        for site in placement.sites.values():
            if site.group != group:
                continue
            if site.kind == "fixed" or site.step not in (None, step):
                raise ValueError(
                    f"layer {name!r}: its step cannot be fixed at {step}, because the tensor "
                    f"must share that of layer {site.name!r}, which is fixed already"
                )
            site.step = step


def _check_wide(sites):
    """Refuses what the runtime cannot do with activations of 16 bits."""
    if not any(site.bits.activation_bits == 16 for site in sites):
        return
    for site in sites:
        if site.kind == "fixed" or (site.operator is not None and not site.operator.int16):
            raise ValueError(
                f"layer {site.name!r} ({type(site.layer).__name__}): it cannot have "
                "activations of 16 bits"
            )
        if site.bits.activation_bits != 16:
            raise ValueError(
                "activations must have 16 bits in the whole model or nowhere, since the "
                f"runtime does not mix them. Received: {site.bits.activation_bits} bits of "
                f"layer {site.name!r}, 16 of others"
            )


def _prescribe(sites, floats):
    """Gives what shares a scale that the runtime prescribes that scale and its 8 bits.

    Not where it is a part of a layer that stays in floating point, one of `floats`.
    """
    for fixed in [site for site in sites.values() if site.kind == "fixed"]:
        for site in sites.values():
            if site.group == fixed.group:
                site.step = fixed.operator.step
                bits = None if fixed.name in floats else 8
                site.bits = dataclasses.replace(site.bits, activation_bits=bits)


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


def _intermediates(placement, graph):
    """Groups that only operators read which want 8 bits of them, or do not care."""
    outputs = {placement.alias[tensor.node] for tensor in graph.output_tensors}
    narrow, wide = set(), set()
    for site in placement.sites.values():
        for reader in placement.readers(site.name):
            wants = reader.operator.wide_input if reader.operator is not None else False
            if wants:
                wide.add(site.group)
            elif wants is not None and reader.group != site.group:
                narrow.add(site.group)
        if site.name in outputs:
            narrow.add(site.group)
    return wide - narrow
