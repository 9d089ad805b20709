"""Why a layer of a file computes something else than the model: the file's numbers against it.

The operators that make a layer's tensor, back to the tensors that other layers store, are
compared with the model: types, scales, zero points, kernel, bias, clamps.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from repq_tf.arithmetic import limited_scale
from repq_tf.arithmetic.runtimes import is_fixed
from repq_tf.graphs import Graph, Node
from repq_tf.keras_api import Array, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.parity.report import LayerParity
from repq_tf.quantization.grids import input_quantizer, known_name, quantized_node
from repq_tf.quantization.operators import activation_name
from repq_tf.tflite import reading
from repq_tf.tflite.operators import OPERATORS, SAME_SCALE, WEIGHTED, kernel_layout

# Kinds and texts of causes.
Found: TypeAlias = Iterator[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Cause:
    """Something in the file that explains a difference.

    Attributes:
        kind: "other model", "float", "scale", "kernel", "bias", "unequal scales", "clamp",
            "kernels" or "unknown".
        layer: the Keras layer whose tensor differs.
        text: what was found.
    """

    kind: str
    layer: str
    text: str

    def __str__(self) -> str:
        return f"layer {self.layer!r}: {self.text}"


def diagnose(
    graph: Graph, model: Any, difference: LayerParity, index: int, runtime: str = "xnnpack"
) -> tuple[Cause, ...]:
    """Inspects the operators of a file that make a tensor which differs.

    Args:
        graph: the quantized model's graph.
        model: the parsed file, of `reading.load`.
        difference: its `LayerParity`.
        index: the number of the tensor in the file.
        runtime: what ran the file; see `repq_tf.arithmetic.runtimes`.

    Returns:
        `Cause`s, the likeliest first; never empty.
    """
    part = _Part(graph, model, difference.name, index)
    found = [
        *part.floats(),
        *part.scales(),
        *part.weights(),
        *(("unequal scales", text) for text in unequal_scales(model, part.operators)),
        *part.clamps(difference.outside),
        *part.slow_kernels(runtime),
    ]
    if {"scale", "kernel"} <= {kind for kind, _ in found}:
        text = (
            "steps and kernel are another model's, or this one's before it was trained on; "
            "export it again"
        )
        found.insert(0, ("other model", text))
    if not found:
        found = [
            (
                "unknown",
                "types, scales, zero points, kernel and bias of the file are the model's; the "
                "runtime computes them in another way (another CPU, or another version of it)",
            )
        ]
    return tuple(Cause(kind, difference.name, text) for kind, text in found)


def unequal_scales(model: Any, operators: Iterable[Any]) -> Iterator[str]:
    """Yields a text for each operator that moves integers between unequal grids."""
    tensors = model.subgraphs[0].tensors
    for operator in operators:
        kind = reading.operator_name(model, operator)
        grids = {
            tensors[i].name.decode(): reading.scale_and_zero(tensors[i])
            for i in reading.features(model, operator)
        }
        if kind in SAME_SCALE and len(set(grids.values())) > 1:
            listed = ", ".join(f"{name!r}: {s:.6g}, {z}" for name, (s, z) in grids.items())
            yield (
                f"unequal scales at {kind}, which needs one; its tensors have the scales and "
                f"zero points {listed}"
            )


def levels_of(layer: Quantize, source: Node | None = None) -> tuple[int, int]:
    """The lowest and the highest level that a tensor can have in the model.

    Args:
        layer: the `Quantize` that rounds it.
        source: the node that makes it, with the activation that is fused into it.
    """
    low, high = layer.activation_quantizer.low, layer.activation_quantizer.high
    name = _activation(source)
    if name in ("relu", "relu6"):
        low = max(low, 0)
    if name == "relu6":
        high = min(high, int(np.rint(6 / np.float32(layer.step))))
    return low, high


def _activation(node: Node | None) -> str:
    if node is None or getattr(node.layer, "activation", None) is None:
        return "linear"
    return activation_name(node.layer)


class _Part:
    """The operators behind one tensor of a file, and the model's layer of the same name."""

    def __init__(self, graph: Graph, model: Any, name: str, index: int) -> None:

        self.graph, self.model, self.name = graph, model, name
        self.tensors = model.subgraphs[0].tensors
        self.types = [reading.type_name(tensor) for tensor in self.tensors]
        self.index = int(index)
        stored = [n for n in graph.nodes.values() if isinstance(n.layer, Quantize)]
        makers = [(quantized_node(graph, node), node.layer) for node in stored]
        self.quantizers = {known_name(graph, maker): layer for maker, layer in makers}
        found = {known_name(graph, maker): maker for maker, _ in makers}
        self.node = found.get(name, graph.nodes.get(name))
        self.operators, self.sources = self._walk()

    def _walk(self) -> tuple[list[Any], list[int]]:
        """The operators, in the order of the file, and the stored tensors that they read."""
        subgraph = self.model.subgraphs[0]
        producer = reading.producers(subgraph)
        ends = {int(i) for i in subgraph.inputs}
        operators: list[Any] = []
        sources: list[int] = []
        waiting = [self.index]
        while waiting:
            index = waiting.pop()
            stored = self._quantizer(index) is not None
            if index != self.index and (stored or index in ends):
                sources.append(index)
            elif index in producer and producer[index] not in operators:
                operators.insert(0, producer[index])
                waiting += [int(i) for i in producer[index].inputs if int(i) in producer]
                waiting += [int(i) for i in producer[index].inputs if int(i) in ends]
        return operators, sources

    def _quantizer(self, index: int) -> Quantize | None:
        """The `Quantize` layer of a tensor, or None."""
        return self.quantizers.get(self.tensors[int(index)].name.decode())

    def _kind(self, operator: Any) -> str:
        return reading.operator_name(self.model, operator)

    def _label(self, index: int) -> str:
        return repr(self.tensors[int(index)].name.decode())

    def floats(self) -> Found:
        """Operators that compute in floating point."""
        subgraph = self.model.subgraphs[0]
        ends = {int(i) for i in (*subgraph.inputs, *subgraph.outputs)}
        for operator in self.operators:
            inner = {int(i) for i in (*operator.inputs, *operator.outputs)} - ends - {-1}
            floats = [i for i in inner if self.types[i] in reading.FLOATS]
            if floats:
                yield (
                    "float",
                    f"float fallback: tensor {self._label(floats[0])} of operator "
                    f"{self._kind(operator)} is {self.types[floats[0]]}",
                )

    def scales(self) -> Found:
        """Scales and zero points that are not the model's."""
        for index in (*self.sources, self.index):
            layer = self._quantizer(index)
            if layer is None or self.types[index] in reading.FLOATS:
                continue
            scale, zero = reading.scale_and_zero(self.tensors[index])
            step, want = np.float32(layer.step), layer.zero_point
            if scale != step:
                name = self._label(index)
                yield "scale", f"tensor {name} has scale {scale}, the model step {step}"
            if self.types[index] == "INT8" and zero != want:
                name = self._label(index)
                yield "scale", f"tensor {name} has zero point {zero} instead of {want}"

    def weights(self) -> Found:
        """Kernel and bias that are not the model's integers."""
        node = self.node
        operators = [op for op in self.operators if self._kind(op) in WEIGHTED]
        if node is None or not isinstance(node.layer, ReparamConv) or len(operators) != 1:
            return
        operator = operators[0]
        if self.types[int(operator.inputs[1])] in reading.FLOATS:
            return  # said already
        quantizer = input_quantizer(self.graph, node)
        assert quantizer is not None  # the file has its grid
        step = quantizer.step
        integers, scale, bias, _ = node.layer.integer_weights(step)
        integers, scale, bias = (ops.convert_to_numpy(v) for v in (integers, scale, bias))
        kernel = self.tensors[int(operator.inputs[1])]
        integers, scale, bias = node.layer.stored_weights(integers, scale, bias)
        output = self.quantizers.get(self.name)
        if output is not None and output.bits <= 8:
            scale = ops.convert_to_numpy(limited_scale(scale, output.step / step))
        want, _ = kernel_layout(integers, self._kind(operator))
        yield from self._different("kernel", "kernel", kernel, want)
        yield from self._other_scale("kernel", "kernel", kernel, scale)
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            if bias.any():
                yield "bias", "the file's operator has no bias"
            return
        tensor = self.tensors[int(operator.inputs[2])]
        yield from self._different("bias", "bias off its grid: the bias", tensor, bias)
        grid = np.float32(step) * scale
        yield from self._other_scale("bias", "bias off its grid: the bias", tensor, grid)

    def _different(self, kind: str, what: str, tensor: Any, want: Array) -> Found:
        got = reading.tensor_data(self.model, tensor)
        if got is None:
            return  # computed, which XNNPACK does not take
        if got.size != want.size:
            yield kind, f"{what} has {got.size} integers in the file, the model's {want.size}"
            return
        difference = np.abs(got.reshape(-1).astype(np.float64) - want.reshape(-1))
        if difference.any():
            yield (
                kind,
                f"{what} differs from the model's in {np.count_nonzero(difference)} of "
                f"{want.size} integers, by up to {difference.max():.0f}",
            )

    def _other_scale(self, kind: str, what: str, tensor: Any, want: Array) -> Found:
        have = tensor.quantization
        got = None if have is None else have.scale
        if got is None or len(got) not in (1, len(want)):
            yield kind, f"{what} has no scale for each of the {len(want)} channels in the file"
        elif not np.array_equal(np.broadcast_to(got, want.shape), want):
            ratio = np.broadcast_to(got, want.shape) / want
            worst = ratio[np.argmax(np.abs(ratio - 1))]
            yield (
                kind,
                f"{what} has another scale than the model's in "
                f"{np.count_nonzero(ratio != 1)} of {len(want)} channels, up to "
                f"{worst:.4g} times it",
            )

    def clamps(self, outside: int) -> Found:
        """Values beyond the model's levels."""
        layer = self.quantizers.get(self.name)
        if outside and layer is not None:
            low, high = levels_of(layer, self.node)
            activation = _activation(self.node)
            yield (
                "clamp",
                f"missing clamp: {outside} values lie outside the levels {low} ... {high} of "
                f"the model (activation {activation}, {layer.bits} bits)",
            )

    def slow_kernels(self, runtime: str) -> Found:
        """Operators that XNNPACK does not run, where it is to."""
        if is_fixed(runtime):
            return
        for operator in self.operators:
            kind = self._kind(operator)
            indices = reading.features(self.model, operator)
            made = False
            if kind in WEIGHTED:
                made = int(operator.inputs[1]) in indices
                indices.append(int(operator.inputs[1]))
            types = {self.types[i] for i in indices}
            fast = kind in OPERATORS and OPERATORS[kind].fast
            if made or not fast or not types <= {"INT8", "UINT8", "FLOAT32"}:
                what = f"{', '.join(sorted(types))}{' with a kernel that is computed' * made}"
                yield (
                    "kernels",
                    f"operator {kind} on {what} is run by other kernels than XNNPACK's, which "
                    "round differently",
                )
