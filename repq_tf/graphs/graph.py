"""The graph of a Keras model as plain data: nodes, and the tensors between them."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Container, Mapping
from typing import Any

from repq_tf.keras_api import Layer, Shape, keras


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
        source_shapes: those of the tensors that it reads, with the batch, where the model's
            configuration tells them.
    """

    name: str
    layer: Layer
    args: tuple = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    part_of: str | None = None
    source_shapes: tuple[Shape, ...] = ()

    @functools.cached_property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors_of((self.args, self.kwargs))

    @property
    def is_input(self) -> bool:
        """Whether it is an input of the model."""
        return isinstance(self.layer, keras.layers.InputLayer)

    @property
    def input_shape(self) -> Shape:
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
    nodes: dict[str, Node]
    inputs: Any
    outputs: Any
    output_names: tuple[str, ...] = ()

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read a node's outputs."""
        return list(self._readers.get(name, {}).values())

    def before(self, name: str) -> "Graph":
        """The part of the graph that makes what a node reads, which are its outputs."""
        found: dict[str, Node] = {}
        for node in reversed(self.nodes.values()):
            if node.name == name or any(n.name in found for n in self.consumers(node.name)):
                found[node.name] = node
        nodes = {node.name: node for node in reversed(found.values()) if node.name != name}
        return dataclasses.replace(self, nodes=nodes, outputs=self.nodes[name].inputs)

    @functools.cached_property
    def _readers(self) -> dict[str, dict[str, Node]]:
        found: dict[str, dict[str, Node]] = {}
        for node in self.nodes.values():
            for tensor in node.inputs:
                found.setdefault(tensor.node, {})[node.name] = node
        return found

    @property
    def input_keys(self) -> dict[str, str]:
        """For the name of each input's node, what the model's caller calls it, in order.

        That is the key of a model that is called with a dict, the input's own name elsewhere.
        """
        if isinstance(self.inputs, dict):
            flat = all(isinstance(tensor, Tensor) for tensor in self.inputs.values())
            if flat:
                return {tensor.node: key for key, tensor in self.inputs.items()}
        return {tensor.node: tensor.node for tensor in tensors_of(self.inputs)}

    @property
    def output_tensors(self) -> list[Tensor]:
        """The outputs as a flat list."""
        return tensors_of(self.outputs)

    @property
    def output_keys(self) -> list[str]:
        """What the outputs are called where each name is that of one: in the file, say."""
        keys: Collection[str] = self.output_names
        if isinstance(self.outputs, dict) and len(self.outputs) == len(keys):
            keys = self.outputs
        found: list[str] = []
        for key in keys:
            found.append(free_name(key, found))
        return found

    def is_output(self, name: str) -> bool:
        """Whether a node's tensor leaves the model."""
        return any(tensor.node == name for tensor in tensors_of(self.outputs))


def free_name(name: str, taken: Container[str]) -> str:
    """The name, or a longer one if it is taken."""
    return name if name not in taken else free_name(f"{name}_explicit", taken)


def leaves(structure: Any) -> list[Any]:
    """The items of nested lists, tuples and dicts, in order."""
    if isinstance(structure, dict):
        structure = list(structure.values())
    elif not isinstance(structure, list | tuple):
        return [structure]
    return [leaf for item in structure for leaf in leaves(item)]


def tensors_of(structure: Any) -> list[Tensor]:
    """The `Tensor`s among the items of nested lists, tuples and dicts, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """Applies a function to the `Tensor`s of a nested structure; returns a like one."""
    return map_leaves(
        lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure
    )


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Applies a function to the items of nested lists, tuples and dicts; returns a like one."""
    if isinstance(structure, dict):
        return {key: map_leaves(function, value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return type(structure)(map_leaves(function, item) for item in structure)
    return function(structure)


def replace_tensors(structure: Any, tensors: Mapping[Tensor, Any]) -> Any:
    """The structure, or `Node`, with the `Tensor`s that are keys of a dict replaced."""
    if isinstance(structure, Node):
        args, kwargs = replace_tensors((structure.args, structure.kwargs), tensors)
        return dataclasses.replace(structure, args=args, kwargs=kwargs)
    return map_tensors(lambda tensor: tensors.get(tensor, tensor), structure)


def pairs(structure: Any, values: Any) -> list[tuple[Any, Any]]:
    """The leaves of a structure, in order, with those of another one of the same form."""
    if isinstance(structure, dict) and isinstance(values, dict):
        return [pair for key, item in structure.items() for pair in pairs(item, values[key])]
    return list(zip(leaves(structure), leaves(values), strict=True))
