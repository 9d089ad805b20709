"""Running a model over images, in inference: batch by batch, or layer by layer."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from repq_tf.calibration.batches import Batch, Batches, Shapes, Stored, StoredInputs, input_of
from repq_tf.calibration.prepared import Run, call, positional, prepare
from repq_tf.graphs import Graph, Node, calls_together, evaluate
from repq_tf.keras_api import Array, Layer, Shape, Tensor, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.progress import Progress

# Bytes that the largest tensor of a batch and what computes it may take, and those for each
# of its values: float32 copies and integer intermediates.
_WORKING = 2**28
_OF_A_VALUE = 40
_LARGEST_BATCH = 128


class Calls:
    """The calls of one layer, one for each batch; iterated over, each is computed anew."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], count: int) -> None:
        self._args, self._kwargs, self._count = args, kwargs, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of batch k: `(args, kwargs)`."""
        return _pick(self._args, k), _pick(self._kwargs, k)

    def __iter__(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        return (self[k] for k in range(self._count))


def _pick(structure: Any, k: int) -> Any:
    if isinstance(structure, Batches):
        return ops.convert_to_tensor(structure[k])
    if isinstance(structure, list | tuple):
        return type(structure)(_pick(item, k) for item in structure)
    if isinstance(structure, dict):
        return {key: _pick(item, k) for key, item in structure.items()}
    return structure


class _Computed:
    """A layer's outputs, computed when they are asked for; those of one batch are kept."""

    def __init__(self, run: Run, calls: Calls) -> None:
        self._run, self._calls = run, calls
        self._last: tuple[Any, Any] = (None, None)

    def outputs(self, k: int) -> tuple[Any, ...]:
        if self._last[0] != k:
            self._last = (k, self._run(*self._calls[k]))
        return self._last[1]


class _Column(Batches):
    def __init__(self, computed: _Computed, index: int) -> None:
        self._computed, self._index = computed, index

    def __getitem__(self, k: int) -> Any:
        return self._computed.outputs(k)[self._index]


class _Later(Batches):
    """What is computed when all calls of a layer are known."""

    def __init__(self) -> None:
        self.batches: Batches | None = None

    def __getitem__(self, k: int) -> Any:
        assert self.batches is not None  # nothing reads it before
        return self.batches[k]


class _Constant(Batches):
    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, k: int) -> Any:
        return self._value


def run_layers(
    graph: Graph,
    images: Stored | StoredInputs,
    visit: Callable[[Node, Sequence[Calls]], None],
    progress: Progress,
    make_run: Callable[[Node], Run] | None = None,
) -> None:
    """Runs a graph layer by layer, each on all images before the next.

    In memory are one batch of what is being computed and small parts of tensors that are
    still needed. Tensors that layers with weights make, and quantized ones, lie in temporary
    files; the others are computed again for each of their readers.

    Args:
        graph: the graph of a model.
        images: their `Stored` batches.
        visit: `visit(node, calls)` is given a node and its `Calls`, before it runs; of a layer
            with weights that the model calls in several places, the first node and those of all
            calls, but for the ones that need what the layer makes.
        progress: a `Progress`; advanced by each layer.
        make_run: `make_run(node)` returns what runs in a node's place, as `prepare` does.
    """
    graph, together = calls_together(graph, _is_visited_once)
    groups = {node.name: group for group in together for node in group}
    waiting: list[tuple[Node, Calls, tuple[_Later, ...]]] = []
    seen: set[int] = set()

    def apply(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Batches, ...]:
        calls = Calls(*positional(node.layer, args, kwargs), len(images))
        group = groups.get(node.name, [node])
        promised = (_Later(), _Later())  # of a tensor, and its step
        waiting.append((node, calls, promised))
        if node is not group[-1]:
            return promised
        if id(node.layer) not in seen:
            visit(group[0], [given for _, given, _ in waiting])
        if node.name in groups:
            seen.add(id(node.layer))
        *others, _ = waiting
        for other, given, columns in others:
            for promise, batches in zip(columns, run(other, given), strict=False):
                promise.batches = batches
        waiting.clear()
        return run(node, calls)

    def run(node: Node, calls: Calls) -> tuple[Batches, ...]:
        if make_run is None and isinstance(node.layer, Quantize):
            columns = _rounded(node.layer, calls)
        else:
            run = prepare(node.layer) if make_run is None else make_run(node)
            columns = _computed(graph, node, calls, run)
        progress.advance()
        return columns

    evaluate(graph, images.of, apply)


def _is_visited_once(layer: Layer) -> bool:
    """Whether all calls of a layer are needed before it can run: for its weights, that is."""
    return bool(layer.weights) and not isinstance(layer, Quantize)


def _rounded(layer: Quantize, calls: Calls) -> tuple[Batches, ...]:
    """The outputs of a `Quantize`, of which the levels are stored.

    They are rounded as in training, which costs less than the integer runtime's arithmetic and
    differs from it in the last place.
    """
    quantizer, step = layer.activation_quantizer, ops.convert_to_numpy(layer.step)
    low, high = quantizer.low, quantizer.high
    stored = Stored(np.min_scalar_type(low if low < 0 else high), step)
    for args, _ in calls:
        levels = ops.convert_to_numpy(layer.values(*args)) / step
        np.clip(np.rint(levels, out=levels), low, high, out=levels)
        stored.append(levels)
    return stored, _Constant(step)


def _computed(graph: Graph, node: Node, calls: Calls, run: Run) -> tuple[Batches, ...]:
    computed = _Computed(run, calls)
    count = len(computed.outputs(0))
    columns: list[Batches] = [_Column(computed, index) for index in range(count)]
    has_step = isinstance(node.layer, ReparamConv | Quantize)
    if _is_stored(graph, node) and (has_step or count == 1):
        # What follows the tensor is its step, equal for all batches.
        columns[1:] = [_Constant(column[0]) for column in columns[1:]]
        stored = Stored()
        for k in range(len(calls)):
            stored.append(ops.convert_to_numpy(columns[0][k]))
        columns[0] = stored
    return tuple(columns)


def _is_stored(graph: Graph, node: Node) -> bool:
    readers = graph.consumers(node.name)
    rounded = len(readers) == 1 and isinstance(readers[0].layer, Quantize)
    return bool(node.layer.weights) and not rounded


def run_batch(
    graph: Graph,
    batch: Batch,
    visit: Callable[[Node, tuple[Any, ...]], None] | None = None,
    observe: Callable[[Node, Tensor], Tensor | None] | None = None,
) -> Any:
    """Runs a graph on one batch of images.

    Args:
        graph: the graph of a model.
        batch: an array `(batch, ...)`, or a dict of them by the names of inputs.
        visit: `visit(node, args)`, called before a node runs.
        observe: `observe(node, value)`, called after it, with its first output; what it
            returns, if anything, takes that one's place.

    Returns:
        The outputs, in the graph's structure.
    """

    def apply(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        args, kwargs = positional(node.layer, args, kwargs)
        if visit is not None:
            visit(node, args)
        first, *more = call(node.layer, args, kwargs)
        return (observed(node, first), *more)

    def observed(node: Node, value: Tensor) -> Tensor:
        replacement = None if observe is None else observe(node, value)
        return value if replacement is None else replacement

    def feed(node: Node) -> Tensor:
        return observed(node, input_of(batch, node))

    return evaluate(graph, feed, apply)


def fitting(graph: Graph) -> Callable[[Shapes], int]:
    """A function from an image's shape, or those of each input, to how many run at once.

    As many as a quarter of a gigabyte holds, 128 at most.

    Args:
        graph: the graph of a model.
    """

    @functools.cache
    def images_at_once(*shapes: tuple[str, Shape]) -> int:
        largest = 0

        def observe(node: Node, value: Tensor) -> None:
            nonlocal largest
            largest = max(largest, int(np.prod(value.shape)))

        zeros: dict[str, Array] = {
            name: np.zeros((1, *shape), np.float32) for name, shape in shapes
        }
        run_batch(graph, zeros.get("", zeros), observe=observe)
        return min(_LARGEST_BATCH, max(1, _WORKING // (_OF_A_VALUE * largest)))

    def at_once(given: Shapes) -> int:
        shapes = given if isinstance(given, Mapping) else {"": given}
        return images_at_once(*((name, tuple(shape)) for name, shape in shapes.items()))

    return at_once
