"""`check_parity`: does the file compute what was trained? Layer by layer."""

import dataclasses
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repq_tf.arithmetic import in_64_bits
from repq_tf.arithmetic.runtimes import check_runtime
from repq_tf.calibration.batches import Batch, Shapes, images_in
from repq_tf.calibration.execution import run_batch
from repq_tf.calibration.images import read_images
from repq_tf.files import file_path
from repq_tf.graphs import Graph, Node, leaves, read_native
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.layers import Quantize
from repq_tf.parity.diagnosis import Cause, diagnose, levels_of
from repq_tf.parity.report import LayerParity, ParityReport
from repq_tf.parity.runtime import File, default_runtime
from repq_tf.progress import Progress
from repq_tf.quantization.grids import (
    grid_layer,
    input_layers,
    known_name,
    quantized_node,
)
from repq_tf.quantization.runtimes import check_operators, in_runtime

# Features of a batch are to take about so much memory, in bytes.
_FEATURES = 2**28
# In Keras, float32 copies and integer intermediates of the largest tensor, in bytes a value.
_KERAS = 40


def check_parity(
    model: keras.Model,
    path: str | os.PathLike[str],
    images: Any,
    batch_size: int | None = None,
    runtime: str | None = None,
    verbose: bool = True,
) -> ParityReport:
    """Compares a quantized model with its file on the same images.

    Runs the Keras model's inference and the file, and compares every stored tensor as
    integers. The model is `repq_tf.with_runtime(model, runtime, container)` of the file's
    container. Memory: the file's tensors of a batch, in
    bytes, and of the model's what a layer still waits for; each is compared when it is made.

    Args:
        model: the quantized model, as for `export_tflite`.
        path: the `.tflite` file that was exported from it.
        images: an array of images, or an iterable of batches, of one image size or several; of
            a model with several inputs, a dict or list of arrays, or an iterable of these.
        batch_size: the most images computed at once; by default as many as fit a quarter
            of a gigabyte.
        runtime: what runs the file, and whose arithmetic the model's is: "xnnpack" on x86,
            "xnnpack_arm" on 64-bit ARM (LiteRT), "reference" (LiteRT's reference kernels), or
            "tflm" (TensorFlow Lite Micro, by the package `tflite-micro`). Default: LiteRT on
            this machine.
        verbose: whether to show a progress bar after two seconds.

    Returns:
        A `ParityReport`.

    Raises:
        ValueError: the file is not a TFLite file, or not one of this model; an argument is
            bad; or the runtime is not here, or lacks an operator.

    Example:
        >>> report = repq_tf.check_parity(qat, "model.tflite", images[:500])
        >>> print(report)
        >>> report.save("parity")
    """
    runtime = default_runtime() if runtime is None else check_runtime(runtime)
    whole = batch_size is None or isinstance(batch_size, numbers.Integral)
    if not whole or (batch_size is not None and batch_size < 1):
        raise ValueError(f"batch_size must be positive and whole. Received: {batch_size!r}")
    graph = read_native(model)
    check_operators(graph, runtime)
    file = File(Path(file_path(path)), runtime)
    with in_64_bits():
        comparison = _Comparison(in_runtime(graph, runtime, file.container), file)
        return _compare(comparison, model, images, batch_size, verbose)


def _compare(
    comparison: "_Comparison",
    model: keras.Model,
    images: Any,
    batch_size: int | None,
    verbose: bool,
) -> ParityReport:
    def fitting(given: Shapes) -> int:
        shapes: Any = [given]
        if isinstance(given, Mapping):
            shapes = [given[name] for name in comparison.inputs]
        kept, largest = comparison.file.image_bytes(*shapes)
        return batch_size or max(1, _FEATURES // (kept + _KERAS * largest))

    total = len(images) if getattr(images, "shape", ()) else None
    progress = Progress("comparing model and file", total, "image", verbose)
    for batch in read_images(images, model, fitting):
        comparison.add(batch)
        progress.advance(images_in(batch))
    return comparison.report()


@dataclasses.dataclass
class _Count:
    """Sums over batches of one tensor."""

    outputs: int = 0
    different: int = 0
    largest: int = 0
    outside: int = 0

    def add(self, want: Array, got: Array, bounds: tuple[int, int]) -> None:
        difference = np.abs(want.reshape(-1) - got.reshape(-1))
        self.outputs += difference.size
        self.different += int(np.count_nonzero(difference))
        self.largest = max(self.largest, int(difference.max()))
        self.outside += int(np.count_nonzero((got < bounds[0]) | (got > bounds[1])))


class _Comparison:
    """A model and its file, batch after batch."""

    def __init__(self, graph: Graph, file: File) -> None:
        self.graph, self.file = _inputs_first(graph), file
        self._given: dict[str, tuple[Array, np.float32]] = {}
        self.layers: dict[str, _Count] = {}
        self.agree: list[Array] = []
        self.images = 0
        stored = [n for n in graph.nodes.values() if isinstance(n.layer, Quantize)]
        names = [quantized_node(graph, node) for node in stored]
        if not any(node.is_input for node in names) or all(node.is_input for node in names):
            raise ValueError(
                f"model {graph.name!r} is not quantized; compare what repq_tf.quantize returned"
            )
        layers = [known_name(graph, node) for node in names if not node.is_input]
        missing = [name for name in layers if name not in file.indices]
        if missing or len(file.outputs) != len(graph.output_tensors):
            what = f"tensor for {missing[:5]}" if missing else "equal number of outputs"
            raise ValueError(
                f"{file.path} was not exported from model {graph.name!r}: it has no {what}"
            )
        keys = {key: name for name, key in graph.input_keys.items()}
        self.inputs = [keys.get(key, key) for key in file.input_names]
        if len(keys) == 1:
            self.inputs = list(keys.values())
        if sorted(self.inputs) != sorted(graph.input_keys) or len(file.inputs) != len(keys):
            raise ValueError(
                f"{file.path} was not exported from model {graph.name!r}: it takes "
                f"{file.input_names}, the model {list(keys)}"
            )
        if all(file.is_float(name) for name in layers):
            raise ValueError(
                f"{file.path} was not exported from model {graph.name!r}: it computes in "
                "floating point"
            )
        self.ends = [
            (
                known_name(graph, quantized_node(graph, graph.nodes[end.node])),
                grid_layer(graph, end),
            )
            for end in graph.output_tensors
        ]
        self.end_counts = [_Count() for _ in self.ends]

    def add(self, batch: Batch) -> None:
        """Compares the tensors of a batch."""
        count = images_in(batch)
        results = run_batch(self.graph, batch, observe=self._observe)
        agree = []
        for position, value in enumerate(leaves(results)):
            name, layer = self.ends[position]
            want, step = _integers(value, layer), np.float32(layer.step)
            got = self.file.output(position, step)
            self._check(name, want, got)
            bounds = levels_of(layer)
            self.end_counts[position].add(want, got, bounds)
            if want[0].size == want.shape[-1]:  # a vector
                flat = (values.reshape(count, -1) for values in (want, got))
                agree.append(np.equal(*(values.argmax(axis=1) for values in flat)))
        if agree:
            self.agree.append(np.all(agree, axis=0))
        self.images += count

    def _observe(self, node: Node, value: Tensor) -> None:
        """Compares what a layer made."""
        if not isinstance(node.layer, Quantize):
            return
        integers, step = _integers(value, node.layer), np.float32(node.layer.step)
        source = quantized_node(self.graph, node)
        if source.is_input:
            self._given[source.name] = integers, step
            if len(self._given) == len(self.inputs):
                self.file.run(*map(self._given.pop, self.inputs))
            return
        name = known_name(self.graph, source)
        got = self.file.tensor(self.file.indices[name], step)
        self._check(name, integers, got)
        bounds = levels_of(node.layer, source)
        self.layers.setdefault(name, _Count()).add(integers, got, bounds)

    def _check(self, name: str, want: Array, got: Array) -> None:
        if want.size != got.size:
            raise ValueError(
                f"{self.file.path} was not exported from model {self.graph.name!r}: layer "
                f"{name!r} makes {want.shape} in the model and {got.shape} in the file"
            )

    def report(self) -> ParityReport:
        """The `ParityReport`, with a diagnosis if a layer diverges."""
        names = [name for name, _ in self.ends]
        layers, outputs = (
            tuple(
                LayerParity(name, **vars(count))
                for name, count in zip(names, counts, strict=True)
            )
            for names, counts in (
                (self.layers, self.layers.values()),
                (names, self.end_counts),
            )
        )
        agreement = float(np.concatenate(self.agree).mean()) if self.agree else None
        report = ParityReport(self.images, agreement, layers, outputs)
        return dataclasses.replace(report, causes=self._diagnose(report))

    def _diagnose(self, report: ParityReport) -> tuple[Cause, ...]:
        """Causes at the first layer that diverges, else before it where values differ."""
        parts = [(layer, self.file.indices[layer.name]) for layer in report.layers]
        parts += zip(report.outputs, self.file.outputs, strict=True)
        diverging = [part for part in parts if part[0].diverges][:1]
        if not diverging:
            return ()
        before = [part for part in parts[: parts.index(diverging[0])] if part[0].different]
        found = [
            diagnose(self.graph, self.file.model, *part, self.file.runtime)
            for part in (*diverging, *before)
        ]
        known = [causes for causes in found if causes[0].kind != "unknown"]
        return (known or found)[0]


def _inputs_first(graph: Graph) -> Graph:
    """The graph with all that is before its quantized inputs first: then the file can run."""
    inputs = [node for node in graph.nodes.values() if node.is_input]
    first = {node.name: node for node in inputs}
    for node in inputs:
        last = node
        for item in input_layers(graph, node):
            last = first[item.name] = item
        readers = graph.consumers(last.name)
        first |= {item.name: item for item in readers if type(item.layer) is Quantize}
    return dataclasses.replace(graph, nodes={**first, **graph.nodes})


def _integers(value: Tensor, layer: Quantize) -> Array:
    """The levels of a quantized tensor."""
    return np.rint(ops.convert_to_numpy(value / layer.step)).astype(np.int32)
