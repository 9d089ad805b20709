"""`load_torch_checkpoint`: every weight found, every tensor used, or nothing is changed."""

import dataclasses
import fnmatch
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from repq_tf.branches import BatchNorm, Branch, Scale
from repq_tf.checkpoints.blocks import block_table
from repq_tf.checkpoints.layouts import Source, kernel, part_by_part, vector
from repq_tf.checkpoints.networks import NAMINGS, modules
from repq_tf.checkpoints.reading import read_checkpoint
from repq_tf.graphs import Graph, read_graph
from repq_tf.keras_api import Array, Layer, Variable, keras, variable_path
from repq_tf.layers import ECB, ConvBlock, DepthToSpace, ReparamConv, SqueezeExcite

# The tensors of PyTorch's modules by our names of the same weights.
_STANDARD: dict[str, tuple[str, Callable[[str], Source]]] = {
    "kernel": ("weight", kernel),
    "bias": ("bias", vector),
    "gamma": ("weight", vector),
    "beta": ("bias", vector),
    "moving_mean": ("running_mean", vector),
    "moving_variance": ("running_var", vector),
    "alpha": ("weight", vector),
    "gain": ("weight", vector),
}

_NAMED = 40  # leftovers that an error lists, of each kind


def load_torch_checkpoint(
    model: keras.Model, path: str | os.PathLike[str], skip: str | Collection[str] | None = ()
) -> None:
    """Loads a checkpoint of the authors' PyTorch code into a model of the library.

    Known are the names of the repositories of RepVGG, QARepVGG, ACNet, OREPA, MobileOne,
    DBB and ECBSR, and those of timm for RepVGG and MobileOne; which ones a checkpoint has is
    found out. Checkpoints of training (with branches) belong into the models of
    `repq_tf.models`, before `repq_tf.quantize`; those of deployment, in which every block is
    one convolution, into `repq_tf.merge(model)`. Of a checkpoint that has averaged weights
    too, those are taken.

    Nothing in the file is run: of PyTorch's files only tensors are loaded. What the authors
    compute otherwise than this library (OREPA's stem, its filters and its grouped kernels,
    the batch norms that ACNet's deployed files keep, the order of channels before a pixel
    shuffle) is converted such that the function stays the same.

    Args:
        model: a Functional or Sequential model, with layers named as in `repq_tf.models`.
        path: the file; `.pth`, `.pt`, `.pth.tar` or `.bin`, `.safetensors` (these
            need `pip install "repq_tf[torch]"`), `.npz` or `.hdf5`.
        skip: name patterns of layers that keep their weights, such as `["logits"]` for
            another number of classes.

    Raises:
        ValueError: a weight of the model is not in the checkpoint, a tensor has no
            place in the model, shapes differ, or the file holds more than tensors. The model is
            unchanged then.

    Example:
        >>> model = repq_tf.models.repvgg_a0()
        >>> repq_tf.load_torch_checkpoint(model, "RepVGG-A0-train.pth")
    """
    graph = read_graph(model)
    tensors = read_checkpoint(path)
    layers: dict[str, Layer] = {}
    for node in graph.nodes.values():
        if node.layer.weights and node.layer not in layers.values():
            layers[node.name] = node.layer
    skipped = _skipped(skip, layers)
    plans = [_plan(naming, layers, skipped, tensors) for naming in NAMINGS]
    plan = min(plans, key=lambda plan: len(plan.missing) + len(plan.unused))
    if plan.missing or plan.unused:
        raise ValueError(_leftovers(plan, path))
    orders = _channel_orders(graph)
    values = [_value(entry, orders.get(entry.layer), tensors) for entry in plan.entries]
    for name, constant in plan.constants.items():
        _check_constant(name, constant, tensors[name])
    for entry, value in zip(plan.entries, values, strict=True):
        entry.variable.assign(value)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One weight and the tensors that it is made of."""

    layer: str
    owner: Any
    variable: Any
    source: Source
    tensors: tuple


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What a naming finds: entries, constants to check, and what is left on both sides."""

    entries: list
    constants: dict
    missing: list
    unused: list


def _skipped(skip: str | Collection[str] | None, layers: Mapping[str, Layer]) -> set[str]:
    names = set()
    patterns = [skip] if isinstance(skip, str) else () if skip is None else skip
    if not isinstance(patterns, list | tuple | set):
        raise ValueError(f"skip must be name patterns of layers. Received: {skip!r}")
    for pattern in patterns:
        matched = fnmatch.filter(layers, pattern)
        if not matched:
            raise ValueError(
                f"skip: {pattern!r} matches no layer with weights; these are: "
                f"{', '.join(layers)}"
            )
        names.update(matched)
    return names


def _plan(
    naming: Mapping[str, str],
    layers: Mapping[str, Layer],
    skipped: Collection[str],
    tensors: Mapping[str, Array],
) -> _Plan:
    """Looks every weight up under the names of one author."""
    places = modules(naming, layers)
    entries: list[_Entry] = []
    constants: dict[str, Array] = {}
    missing: list[str] = []
    used: set[str] = set()
    for name, layer in layers.items():
        module = places.get(name)
        if name in skipped:
            used.update(n for n in tensors if module and n.startswith(f"{module}."))
            continue
        table = block_table(layer)
        for path, owner, attribute, variable in _weights(layer):
            sources = _sources(table.names, path, attribute) if module else []
            wanted = [[_join(module, n) for n in source.names] for source in sources]
            for source, theirs in zip(sources, wanted, strict=True):
                if all(n in tensors for n in theirs):
                    entries.append(_Entry(name, owner, variable, source, tuple(theirs)))
                    used.update(theirs)
                    break
            else:
                ours = "/".join((name, *path, attribute))
                looked = " or ".join(" + ".join(theirs) for theirs in wanted)
                missing.append(f"{ours} ({looked})" if looked else ours)
        for theirs, constant in table.constants.items():
            if module and _join(module, theirs) in tensors:
                constants[_join(module, theirs)] = constant
    unused = [name for name in tensors if name not in used and name not in constants]
    return _Plan(entries, constants, missing, unused)


def _join(*names: str | None) -> str:
    return ".".join(name for name in names if name)


def _weights(layer: Layer) -> Iterator[tuple[tuple[str, ...], Layer, str, Variable]]:
    """Yields `(path, owner, name, variable)` of each weight; those of no known part last."""
    known = set()
    for path, part in _parts(layer):
        for name in _STANDARD:
            owner = getattr(part, "statistics", part) if name.startswith("moving") else part
            variable = getattr(owner, name, None)
            if variable is not None:
                known.add(id(variable))
                yield path, part, name, variable
    for variable in layer.weights:
        if id(variable) not in known:
            yield (), layer, variable_path(variable), variable


def _parts(layer: Layer) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """Yields the parts of a layer that own weights, with their paths."""
    if isinstance(layer, ReparamConv):
        yield from _branches(layer.expression)
    elif isinstance(layer, SqueezeExcite):
        yield from ((("reduce",), layer.reduce), (("expand",), layer.expand))
    else:
        yield (), layer


def _branches(
    node: Branch, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Layer]]:
    path = (*above, node.name)
    yield path, node
    inside = above if isinstance(node, BatchNorm | Scale) else path
    for child in getattr(node, "children", ()):
        yield from _branches(child, inside)


def _sources(names: Mapping[str, Any], path: tuple[str, ...], attribute: str) -> list[Source]:
    """The possible sources of a weight: those of the longest key that its path ends in."""
    for start in range(len(path) + 1):
        ending = path[start:]
        source = names.get("/".join((*ending, attribute)))
        if source is not None:
            return [source]
        theirs = names.get("/".join(ending))
        if theirs is not None:
            suffix, make = _STANDARD[attribute]
            theirs = (theirs,) if isinstance(theirs, str) else theirs
            return [
                name if isinstance(name, Source) else make(_join(name, suffix))
                for name in theirs
            ]
    return []


def _value(entry: _Entry, order: Array | None, tensors: Mapping[str, Array]) -> Array:
    """The weight in our layout; shapes must agree."""
    shape = tuple(entry.variable.shape)
    if isinstance(entry.owner, keras.layers.Dense) and len(shape) == 2:
        layout = (1, 1, *shape)
    elif isinstance(entry.owner, keras.layers.DepthwiseConv2D) and len(shape) == 4:
        layout = (*shape[:2], 1, shape[2] * shape[3])
    else:
        layout = shape
    given = [np.asarray(tensors[name], np.float64) for name in entry.tensors]
    value = entry.source.convert(layout, *given)
    if value.shape != layout:
        names = ", ".join(f"{name} {tensors[name].shape}" for name in entry.tensors)
        raise ValueError(
            f"shapes must agree: layer {entry.layer!r} has a weight {shape}; the checkpoint "
            f"has {names}"
        )
    if order is not None and not entry.source.inner:
        value = value[..., order]
    return value.reshape(shape)


def _check_constant(name: str, constant: Array, tensor: Array) -> None:
    if tensor.shape != constant.shape or not np.allclose(tensor, constant, atol=1e-6):
        raise ValueError(f"{name}: the checkpoint's fixed filters are not those of the block")


def _channel_orders(graph: Graph) -> dict[str, Array]:
    """The order of output channels of layers before a `DepthToSpace`, by their names.

    PyTorch's pixel shuffle counts channel before place, `DepthToSpace` place before channel.
    """
    orders = {}
    for node in graph.nodes.values():
        if not isinstance(node.layer, DepthToSpace) or node.layer.output.shape[-1] == 1:
            continue
        waiting = list(node.inputs)
        while waiting:
            source = graph.nodes[waiting.pop().node]
            if not source.layer.weights:
                waiting.extend(source.inputs)
                continue
            # The x that a block adds cannot be put in order with its other outputs.
            identity = getattr(source.layer, "identity", False)
            known = isinstance(source.layer, ECB | ConvBlock | keras.layers.Conv2D)
            if identity or not known:
                kind = type(source.layer).__name__ + (" with identity=True" if identity else "")
                raise ValueError(
                    f"layer {source.name!r}: {kind} cannot be loaded before DepthToSpace "
                    f"to {node.layer.output.shape[-1]} channels"
                )
            places = node.layer.block_size**2
            orders[source.name] = part_by_part(source.layer.filters, places)
    return orders


def _leftovers(plan: _Plan, path: str | os.PathLike[str]) -> str:
    lines = [f"the checkpoint must hold the model's weights and no others: {path}"]
    sides = (
        ("weights of the model that it has not", plan.missing),
        ("tensors that have no place in the model", plan.unused),
    )
    for title, names in sides:
        if names:
            more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"{len(names)} {title}: {', '.join(names[:_NAMED])}{more}")
    lines.append(
        "Checkpoints of merged blocks belong into repq_tf.merge(model), those of branches into "
        "the model itself, before repq_tf.quantize"
    )
    return ". ".join(lines)
