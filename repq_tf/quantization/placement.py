"""What is quantized where: every stored tensor gets one quantizer.

Sites form groups with one quantizer each; defaults and rules settle everyone's bits here.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from repq_tf.graphs import Graph
from repq_tf.quantization.groups import form_groups
from repq_tf.quantization.rules import CheckedRules, LayerBits, apply_rules
from repq_tf.quantization.sites import Placement, Site, find_sites


def place(
    graph: Graph,
    bits: LayerBits,
    rules: CheckedRules,
    signed_inputs: Mapping[str, bool],
    steps: Iterable[tuple[str, float]] = (),
) -> Placement:
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
    sites, groups = placement.sites, form_groups(placement.sites)
    placement.groups = groups
    _sign(placement, signed_inputs)
    edge_groups, edge_kernels = _edges(placement, graph)
    wide_groups = edge_groups | _intermediates(placement, graph)
    defaults, wide = {}, max(8, bits.activation_bits or 8)
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
    firsts = _first_calls(placement)
    for name, first in firsts.items():
        if name in edge_kernels:
            edge_kernels.add(first)
    for first in set(firsts.values()) & edge_kernels:
        defaults[first] = dataclasses.replace(defaults[first], weight_bits=8)
    for name, value in apply_rules(rules, wholes, defaults, weighted, firsts).items():
        sites[name].bits = value
    for name, first in firsts.items():
        sites[name].bits = sites[name].bits.with_weights_of(sites[first].bits)
    outputs = {whole: sites[name].bits.activation_bits for name, whole in wholes.items()}
    floats = [name for name in sites if outputs.get(graph.nodes[name].part_of, 8) is None]
    for group in groups.values():
        group.share_bits()
        group.share_range(bits.activation_range)
    for name, step in steps:
        groups[sites[placement.alias[name]].group].fix_step(name, step)
    _check_wide(sites.values())
    for group in groups.values():
        group.prescribe(floats)
        group.mirror()
    _check_ranges(sites.values())
    return placement


def _first_calls(placement: Placement) -> dict[str, str]:
    """For each later call of a layer with a kernel, the site of its first call."""
    first: dict[int, str] = {}
    found = {
        name: first.setdefault(id(site.layer), name)
        for name, site in placement.sites.items()
        if site.kind == "convolution"
    }
    return {name: other for name, other in found.items() if name != other}


def _sign(placement: Placement, signed_inputs: Mapping[str, bool]) -> None:
    """Settles whether each tensor, and then each group, has negative values."""
    sites = placement.sites
    for site in sites.values():
        if site.kind == "input":
            site.signed = signed_inputs[placement.inputs[site.name]]
        elif site.activation != "linear":
            site.signed = False
        elif site.operator is not None and site.operator.signed is not None:
            site.signed = site.operator.signed
        elif site.kind == "convolution":
            site.signed = True
        else:
            site.signed = any(sites[source].signed for source in site.inputs)
    for group in placement.groups.values():
        group.share_sign()


def _check_ranges(sites: Collection[Site]) -> None:
    """Refuses the divergence of distributions but for 8 bits, for which it is defined."""
    for site in sites:
        kinds = {"weight"} if site.kind == "convolution" else set()
        kinds |= {"activation"} if site.kind != "fixed" and site.step is None else set()
        for kind in sorted(kinds):
            bits = getattr(site.bits, f"{kind}_bits")
            if getattr(site.bits, f"{kind}_range") == "kl" and bits not in (None, 8):
                raise ValueError(
                    f'layer {site.name!r}: {kind}_range "kl" is for 8 bits. Received: '
                    f"{kind}_bits={bits}"
                )


def _check_wide(sites: Collection[Site]) -> None:
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


def _edges(placement: Placement, graph: Graph) -> tuple[set[str], set[str]]:
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


def _intermediates(placement: Placement, graph: Graph) -> set[str]:
    """Groups where some reader asks for 8 bits and none objects."""
    sites = placement.sites
    outputs = {placement.alias[tensor.node] for tensor in graph.output_tensors}
    narrow, wide = {sites[name].group for name in outputs}, set()
    for reader in sites.values():
        wants = reader.operator.wide_input if reader.operator is not None else False
        for group in {sites[source].group for source in reader.inputs}:
            if wants:
                wide.add(group)
            elif wants is not None and reader.group != group:
                narrow.add(group)
    return wide - narrow
