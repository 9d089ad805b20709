"""The graph of a model as plain data: nodes, and the tensors between them."""

import dataclasses
import numbers
from collections.abc import Iterable
from typing import Any

from repq_tf.keras_api import keras


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Output number `index` of the node called `node`."""

    node: str
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of one layer.

    Attributes:
        name: unique in the graph; the layer's name where it is called once.
        layer: the layer.
        args: positional arguments, a nested structure with `Tensor` leaves.
        kwargs: keyword arguments, likewise.
        part_of: the name of the layer that it is a part of; None for a whole layer.
    """

    name: str
    layer: Any
    args: tuple = ()
    kwargs: dict = dataclasses.field(default_factory=dict)
    part_of: str | None = None

    @property
    def inputs(self):
        """The tensors among the arguments."""
        return tensors_of((self.args, self.kwargs))

    @property
    def is_input(self):
        """Whether it is an input of the model."""
        return isinstance(self.layer, keras.layers.InputLayer)

    @property
    def input_shape(self):
        """The shape of an input of the model, with the batch."""
        return tuple(self.layer.output.shape)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and which tensors go in and out.

    Attributes:
        name: the model's name.
        nodes: nodes by name.
        inputs: a `Tensor`, or a list or dict of them: what the model is called with.
        outputs: a `Tensor`, or a list or dict of them.
        output_names: of the outputs, in order: what the model's layers that make them are
            called, and losses and metrics keyed by.
    """

    name: str
    nodes: dict
    inputs: Any
    outputs: Any
    output_names: tuple = ()

    def consumers(self, name):
        """The nodes that read a node's outputs."""
        return [
            node
            for node in self.nodes.values()
            if any(tensor.node == name for tensor in node.inputs)
        ]

    @property
    def output_tensors(self):
        """The outputs as a flat list."""
        return tensors_of(self.outputs)

    @property
    def output_keys(self):
        """What the outputs are called where each name is that of one: in the file, say."""
        keys = self.output_names
        if isinstance(self.outputs, dict) and len(self.outputs) == len(keys):
            keys = self.outputs
        found = []
        for key in keys:
            found.append(free_name(key, found))
        return found

    def is_output(self, name):
        """Whether a node's tensor leaves the model."""
        return any(tensor.node == name for tensor in tensors_of(self.outputs))


def free_name(name, taken):
    """The name, or a longer one if it is taken."""
    return name if name not in taken else free_name(f"{name}_explicit", taken)


def leaves(structure):
    """The items of nested lists, tuples and dicts, in order."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    elif not isinstance(structure, list | tuple):
        return [structure]
    return [leaf for item in structure for leaf in leaves(item)]


def fits(shape, given):
    """Whether a shape is one of those that another describes, with None for any size."""
    return len(shape) == len(given) and all(
        want in (None, got) for want, got in zip(shape, given, strict=True)
    )


def check_input_shape(shape, given):
    """`input_shape` as a tuple, of a model that takes a shape with None for any size.

    Raises:
        ValueError: it is no shape, or not one that the model takes.
    """
    sizes = tuple(given) if isinstance(given, Iterable) else ()
    whole = all(isinstance(size, numbers.Integral) and size > 0 for size in sizes)
    if not whole or not fits(shape, sizes):
        raise ValueError(
            f"input_shape must be whole, positive sizes that fit the model's {shape}. "
            f"Received: {given!r}"
        )
    return tuple(int(size) for size in sizes)


def tensors_of(structure):
    """The `Tensor`s among the items of nested lists, tuples and dicts, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Tensor)]


def map_tensors(function, structure):
    """Applies a function to the `Tensor`s of a nested structure; returns a like one."""
    return map_leaves(
        lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure
    )


def map_leaves(function, structure):
    """Applies a function to the items of nested lists, tuples and dicts; returns a like one."""
    if isinstance(structure, dict):
        return {key: map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(map_leaves(function, item) for item in structure)
    return function(structure)


def replace_tensors(structure, tensors):
    """The structure, or `Node`, with the `Tensor`s that are keys of a dict replaced."""
    if isinstance(structure, Node):
        args, kwargs = replace_tensors((structure.args, structure.kwargs), tensors)
        return dataclasses.replace(structure, args=args, kwargs=kwargs)
    return map_tensors(lambda tensor: tensors.get(tensor, tensor), structure)
