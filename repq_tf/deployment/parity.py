"""`check_parity`: does the file compute what was trained? Layer by layer."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from repq_tf.deployment import flatbuffer
from repq_tf.deployment.merge import quantized_node
from repq_tf.keras_api import ops
from repq_tf.layers import Quantize
from repq_tf.quantization.calibration import as_batches, run_batches
from repq_tf.quantization.graph import read_graph

# A layer diverges when more outputs differ than rounding ties explain.
_TIES = 0.005


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """How one stored tensor compares.

    Attributes:
        name: the Keras layer that makes it.
        outputs: number of values compared.
        different: how many differ.
        largest: by how many steps at most.
    """

    name: str
    outputs: int
    different: int
    largest: int

    @property
    def diverges(self):
        """Whether it differs by more than rounding."""
        return self.different > _TIES * self.outputs or self.largest > 1


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What `check_parity` found; `str(report)` is a table.

    Attributes:
        images: number of images.
        top1_agreement: share of images with the same largest output.
        equal_outputs: share of the model's outputs that are equal.
        largest_difference: of the model's outputs, in steps.
        layers: a `LayerParity` for each stored tensor, in order.
    """

    images: int
    top1_agreement: float
    equal_outputs: float
    largest_difference: int
    layers: tuple

    @property
    def first_divergent(self):
        """The name of the first layer that differs by more than rounding, or None."""
        return next((layer.name for layer in self.layers if layer.diverges), None)

    def as_dict(self):
        """The report as plain data."""
        return {**dataclasses.asdict(self), "first_divergent": self.first_divergent}

    def __str__(self):
        width = max(len(layer.name) for layer in self.layers)
        lines = [f"{'layer'.ljust(width)}  {'outputs':>10}  {'different':>10}  largest"]
        lines += [
            f"{layer.name.ljust(width)}  {layer.outputs:>10}  {layer.different:>10}  "
            f"{layer.largest} steps{'  DIVERGES' if layer.diverges else ''}"
            for layer in self.layers
        ]
        lines.append(
            f"{self.images} images: top-1 agreement {self.top1_agreement:.2%}, final outputs "
            f"equal {self.equal_outputs:.3%}, largest difference "
            f"{self.largest_difference} steps; first divergent layer: "
            f"{self.first_divergent or 'none'}"
        )
        return "\n".join(lines)


def check_parity(model, path, images, batch_size=100):
    """Compares a quantized model with its file on the same images.

    Runs the Keras model's inference and the interpreter (its default kernels, XNNPACK),
    and compares every stored tensor as integers.

    Args:
        model: the quantized model.
        path: the `.tflite` file that was exported from it.
        images: an array of images, or an iterable of batches.
        batch_size: used to cut an array.

    Returns:
        A `ParityReport`.

    Raises:
        ValueError: the file is not a TFLite file, or not one of this model.

    Example:
        >>> print(repq_tf.check_parity(qat, "model.tflite", images[:500]))
    """
    batches = as_batches(images, model, batch_size)
    expected, source, final = _keras_integers(model, batches)
    content = Path(path).read_bytes()
    file = _File(content, batches[0].shape[1:], source)
    missing = [name for name in expected if name not in file.names]
    if missing:
        raise ValueError(
            f"{path} was not exported from model {model.name!r}: it has no tensor for "
            f"{missing[:5]}"
        )
    inputs = [source.integers(batch) for batch in batches]
    found = file.tensors(inputs, list(expected))
    layers = tuple(_compare(name, expected[name], found[name]) for name in expected)
    outputs = file.outputs(inputs)
    want = expected[final].reshape(len(outputs), -1)
    outputs = outputs.reshape(len(outputs), -1)
    difference = np.abs(want - outputs)
    return ParityReport(
        images=len(outputs),
        top1_agreement=float(np.mean(want.argmax(axis=1) == outputs.argmax(axis=1))),
        equal_outputs=float(np.mean(difference == 0)),
        largest_difference=int(difference.max()),
        layers=layers,
    )


def _compare(name, want, got):
    difference = np.abs(want.reshape(-1) - got.reshape(-1))
    return LayerParity(
        name, difference.size, int(np.count_nonzero(difference)), int(difference.max())
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The grid of the model's input."""

    step: np.float32
    low: int
    high: int

    def integers(self, x):
        return np.rint(np.clip(x / self.step, self.low, self.high)).astype(np.int32)


def _keras_integers(model, batches):
    """The integers of every stored tensor, the input's grid, and the output's name."""
    graph = read_graph(model)
    expected, sources = {}, []

    def observe(node, results):
        if not isinstance(node.layer, Quantize):
            return
        step = node.layer.step
        before = quantized_node(graph, node)
        if before.is_input:
            quantizer = node.layer.activation_quantizer
            sources.append(_Source(np.float32(step), quantizer.low, quantizer.high))
            return
        integers = [np.rint(ops.convert_to_numpy(y / step)) for y in results]
        expected[before.name] = np.concatenate(integers).astype(np.int32)

    run_batches(graph, batches, observe=observe)
    if not sources or not expected:
        raise ValueError(f"model {model.name!r} is not quantized")
    return expected, sources[0], list(expected)[-1]


class _File:
    """A `.tflite` file and its interpreter."""

    def __init__(self, content, shape, source):
        model = flatbuffer.load(content)
        graph = model.subgraphs[0]
        self.content = content
        self.source = source
        self.names = {tensor.name.decode(): i for i, tensor in enumerate(graph.tensors)}
        self.zero_points = [
            int(t.quantization.zeroPoint[0])
            if t.quantization and t.quantization.zeroPoint is not None
            else 0
            for t in graph.tensors
        ]
        have = tuple(int(n) for n in graph.tensors[graph.inputs[0]].shape[1:])
        if have != tuple(shape):
            raise ValueError(f"the file takes images of shape {have}. Received: {shape}")

    def tensors(self, inputs, names):
        """Integers, zero points removed, of inner tensors."""
        found = {name: [] for name in names}
        for interpreter in self._run(inputs, preserve=True):
            for name in names:
                index = self.names[name]
                values = interpreter.get_tensor(index).astype(np.int32)
                found[name].append(values - self.zero_points[index])
        return {name: np.concatenate(values) for name, values in found.items()}

    def outputs(self, inputs):
        """Integers of the model's (first) output."""
        found = []
        for interpreter in self._run(inputs, preserve=False):
            detail = interpreter.get_output_details()[0]
            scale, zero = detail["quantization"]
            values = interpreter.get_tensor(detail["index"])
            if detail["dtype"] == np.float32:
                index = self.names[detail["name"].removesuffix("_float32")]
                model = flatbuffer.load(self.content)
                scale = model.subgraphs[0].tensors[index].quantization.scale[0]
                found.append(np.rint(values / scale).astype(np.int32))
            else:
                found.append(values.astype(np.int32) - zero)
        return np.concatenate(found)

    def _run(self, inputs, preserve):
        from ai_edge_litert.interpreter import Interpreter

        with warnings.catch_warnings():
            # It warns that preserving tensors takes memory.
            warnings.simplefilter("ignore", UserWarning)
            interpreter = Interpreter(
                model_content=self.content,
                num_threads=2,
                experimental_preserve_all_tensors=preserve,
            )
        detail = interpreter.get_input_details()[0]
        shape = None
        for integers in inputs:
            if integers.shape != shape:
                shape = integers.shape
                interpreter.resize_tensor_input(detail["index"], shape)
                interpreter.allocate_tensors()
            if detail["dtype"] == np.float32:
                values = (integers * self.source.step).astype(np.float32)
            else:
                values = (integers + detail["quantization"][1]).astype(detail["dtype"])
            interpreter.set_tensor(detail["index"], values)
            interpreter.invoke()
            yield interpreter
