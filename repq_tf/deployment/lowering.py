"""A model as a `Program`: each layer to operators."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.arguments import fitting_shape
from repq_tf.deployment.ends import Ends
from repq_tf.deployment.ratios import check_ratios
from repq_tf.graphs import Graph, Node, evaluate, leaves
from repq_tf.keras_api import Layer, Shape, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.layers.stock import MAPS
from repq_tf.quantization.grids import (
    grid_layer,
    input_layers,
    input_quantizer,
    known_name,
    own_quantizer,
    quantized_node,
    stays_inside,
)
from repq_tf.tflite.program import Grid, Program, Tensor

# Makes an operator's output, given its grid (None in a float file) and its name; adds the
# operator to the program.
Make: TypeAlias = Callable[[Any, str], Tensor]
# `lower(lowering, node, tensors)`: what a layer becomes, or its output as it is.
Lower: TypeAlias = Callable[[Any, Node, Sequence[Tensor]], Make | Tensor]


class Lowering:
    """Makes the program of a model, layer by layer.

    Args:
        graph: the model's `Graph`.
        lowerings: `{class of a layer: Lower}`.
        kind: the type of features.

    Attributes:
        program: the `Program`.
    """

    def __init__(self, graph: Graph, lowerings: Mapping[type, Lower], kind: str) -> None:
        self.graph, self._lowerings, self._kind = graph, lowerings, kind
        self.program = Program()
        self.program.keep({tensor.node for tensor in graph.output_tensors})

    def tensor(self, name: str, shape: Shape, grid: Grid | None) -> Tensor:
        """A new tensor of features, whose batch is open, with the name that a `Make` got."""
        return Tensor(name, self._kind, shape, grid)

    def inner(self, name: str, shape: Shape, grid: Grid | None) -> Tensor:
        """A new tensor between those that bear layers' names, with a name like the given one.

        Args:
            name: the name.
            shape: of the features.
            grid: that of a stored tensor; None in a float file.
        """
        return self.tensor(self.program.name(name), shape, grid)

    def check_finite(self, name: str, *values: Any) -> None:
        """Raises ValueError if a layer holds NaN or infinity."""
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError(
                f"model {self.graph.name!r} holds NaN or infinity, first in layer {name!r}; "
                "its training has diverged"
            )

    def lower(self, layer: Layer) -> Lower:
        """How a layer becomes operators."""
        # Of blocks all kinds are convolutions; other subclasses may compute something else.
        block = isinstance(layer, ReparamConv)
        for kind in type(layer).__mro__ if block else (type(layer),):
            if kind in self._lowerings:
                return self._lowerings[kind]
        raise ValueError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be written to a file"
        )


class IntegerLowering(Lowering):
    """Makes the program of a quantized model.

    Args:
        graph: the model's `Graph`.
        input_shape: of the file's images; None for the model's own. Of several inputs, a dict
            by the names that the caller calls them.
        packed: names of the nodes whose kernels are stored in 4 bits.
        lowerings: `{class of a layer: Lower}`.

    Attributes:
        inputs: a `Source` for each input of the model, by what the caller calls it.
        bits: of the activations: 16, or at most 8.

    Raises:
        ValueError: the model is not quantized, or a layer, which is named, computes in
            floating point or holds NaN.
    """

    def __init__(
        self,
        graph: Graph,
        input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None,
        packed: Collection[str],
        lowerings: Mapping[type, Lower],
    ) -> None:
        self.graph, self.packed = graph, frozenset(packed)
        sources = [graph.nodes[name] for name in graph.input_keys]
        before = {node.name: input_layers(graph, node) for node in sources}
        self._preparing = {item.name for items in before.values() for item in items}
        if not any(_rounds(node) for node in graph.nodes.values()):
            raise ValueError(
                f"model {graph.name!r} is not quantized; export what repq_tf.quantize "
                "returned, which merges its blocks itself"
            )
        for node in graph.nodes.values():
            self._check(node)
        shapes = by_input("input_shape", input_shape, graph)
        self.inputs = {
            graph.input_keys[node.name]: _source(
                graph, node, before[node.name], shapes[graph.input_keys[node.name]]
            )
            for node in sources
        }
        self.bits = max(source.layer.bits for source in self.inputs.values())
        super().__init__(graph, lowerings, "int16" if self.bits == 16 else "int8")
        self.steps = {
            node.layer.name: np.float32(ops.convert_to_numpy(node.layer.step))
            for node in graph.nodes.values()
            if _rounds(node)
        }
        for name, step in self.steps.items():
            self.check_finite(name, step)

    def run(self, ends: Mapping[str, Ends]) -> Program:
        """Lowers every layer; returns the program.

        Args:
            ends: the file's `Ends`, for each input; what they say of outputs is one.
        """
        graph, program = self.graph, self.program
        # Tensors that parity compares bear the layers' names; what lies between gets others.
        stored = [quantized_node(graph, n) for n in graph.nodes.values() if _rounds(n)]
        program.reserve({known_name(graph, node) for node in stored})
        names = graph.input_keys
        outputs = leaves(
            evaluate(graph, lambda node: self._feed(names[node.name], ends), self._apply)
        )
        program.inputs = {name: program.inputs[name] for name in self.inputs}  # in their order
        (first, *_) = ends.values()
        for key, tensor in zip(graph.output_keys, outputs, strict=True):
            program.outputs[key] = first.give(program, tensor)
        check_ratios(program)
        return program

    def grid(self, layer: Quantize) -> Grid:
        """The grid of a tensor that a `Quantize` layer rounds."""
        return Grid(self.steps[layer.name], layer.zero_point)

    def _check(self, node: Node) -> None:
        name = known_name(self.graph, node)
        if not isinstance(node.layer, ReparamConv):
            stored = isinstance(node.layer, Quantize) or node.name in self._preparing
            if node.layer.weights and not stored:
                raise ValueError(
                    f"layer {name!r} ({type(node.layer).__name__}) computes in floating "
                    "point; export what repq_tf.quantize returned"
                )
            return
        quantized = node.layer.weight_quantizer is not None
        readers = self.graph.consumers(node.name)
        if quantized and input_quantizer(self.graph, node) and readers:
            if all(type(reader.layer) is Quantize for reader in readers):
                return
        raise ValueError(
            f"layer {name!r} computes in floating point (its kernel, its input or its "
            "output has no quantizer), so the file would not be all integer"
        )

    def _feed(self, key: str, ends: Mapping[str, Ends]) -> Make:
        def make(grid: Grid, name: str) -> Tensor:
            tensor = self.tensor(name, (None, *self.inputs[key].shape), grid)
            self.program.inputs[key] = ends[key].take(self.program, tensor)
            return tensor

        return make

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = node.layer
        if node.name in self._preparing:
            return args[0]
        tensors = [leaf for leaf in leaves(args) if isinstance(leaf, Tensor)]
        rounded = _rounds(node) and quantized_node(self.graph, node) is not node
        made: Any = args[0] if rounded else self.lower(layer)(self, node, tensors)
        if _rounds(node):
            return self._store(node, made), None
        if isinstance(made, Tensor):
            return made
        readers = self.graph.consumers(node.name)
        if any(type(reader.layer) is Quantize for reader in readers):
            return (made, None) if isinstance(layer, ReparamConv) else made
        # What stands alone keeps the grid of what it reads.
        grid = self.grid(grid_layer(self.graph, node.inputs[0]))
        return made(grid, self.program.name(node.name))

    def _store(self, node: Node, make: Make) -> Tensor:
        """The output of an operator on the grid that a `Quantize` rounds it to.

        The container's saturation is the upper clamp of a grid of fewer than 8 bits. If it is
        signed, the operator's own output has the zero point with which the lowest level is the
        container's, too, and a QUANTIZE of equal scale moves it back.
        """
        layer, source = node.layer, quantized_node(self.graph, node)
        grid, name = self.grid(layer), known_name(self.graph, source)
        written = dataclasses.replace(grid, zero_point=layer.operator_zero_point)
        if source.is_input or written == grid or stays_inside(source.layer):
            return make(grid, name)
        unclamped = self.program.name(f"{name}/unclamped")
        wide = make(written, unclamped)
        return self.program.add("QUANTIZE", (wide,), self.tensor(name, wide.shape, grid))


@dataclasses.dataclass(frozen=True)
class Source:
    """An input of a quantized model.

    Attributes:
        layer: the `Quantize` of it.
        shape: of an image, with None for sizes that are open.
        maps: the layers that prepare it by constants; what is quantized is behind them.
    """

    layer: Quantize
    shape: Shape
    maps: list[Layer]


def _source(
    graph: Graph, node: Node, before: Sequence[Node], given: Sequence[int] | None
) -> Source:
    layer, shape = own_quantizer(graph, node), node.input_shape[1:]
    if layer is None:
        raise ValueError(
            f"model {graph.name!r}: its input {node.name!r} has no quantizer, so the "
            "file would not be all integer"
        )
    if given is not None:
        shape = fitting_shape(shape, given)
    return Source(layer, shape, [item.layer for item in before if type(item.layer) in MAPS])


def by_input(argument: str, value: Any, graph: Graph) -> dict[str, Any]:
    """An argument of each input of a model, by what its caller calls it.

    Args:
        argument: its name.
        value: a dict by some of these names, or what holds for all inputs.
        graph: the model's `Graph`.

    Raises:
        ValueError: the model has no such input.
    """
    names = list(graph.input_keys.values())
    if not isinstance(value, dict):
        return dict.fromkeys(names, value)
    if unknown := [name for name in value if name not in names]:
        raise ValueError(
            f"{argument}, a dict, must be of inputs of the model, {names}. Received: {unknown}"
        )
    return {name: value.get(name) for name in names}


def _rounds(node: Node) -> bool:
    return isinstance(node.layer, Quantize)
