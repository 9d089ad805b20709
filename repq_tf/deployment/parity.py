"""`check_parity`: does the file compute what was trained? Layer by layer."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from repq_tf.deployment.containers import in_container
from repq_tf.deployment.merge import grid_layer, quantized_node, read_deployable
from repq_tf.keras_api import ops
from repq_tf.layers import Quantize
from repq_tf.quantization.execution import as_batches, run_batches
from repq_tf.quantization.graph import fits, leaves

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
    and compares every stored tensor as integers. Of a file with 4-bit kernels, the model is
    `repq_tf.with_container(model, "int4")`.

    Args:
        model: the quantized model, as for `export_tflite`.
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
    file = _File(Path(path), batches[0].shape[1:])
    graph = in_container(read_deployable(model), file.container)
    counts, equal, agree, largest = {}, [], [], 0
    for batch in batches:
        expected, source, want = _keras_integers(graph, batch)
        missing = [name for name in expected if name not in file.indices]
        if missing:
            raise ValueError(
                f"{path} was not exported from model {model.name!r}: it has no tensor for "
                f"{missing[:5]}"
            )
        found = file.tensors(source, list(expected))
        for name, integers in expected.items():
            if integers.size != found[name].size:
                raise ValueError(
                    f"{path} was not exported from model {model.name!r}: layer {name!r} makes "
                    f"{integers.shape} in the model and {found[name].shape} in the file"
                )
            counts.setdefault(name, []).append(_difference(integers, found[name]))
        want = want.reshape(len(batch), -1)
        outputs = file.output(source).reshape(len(batch), -1)
        difference = np.abs(want - outputs)
        equal.append(difference.ravel() == 0)
        agree.append(want.argmax(axis=1) == outputs.argmax(axis=1))
        largest = max(largest, int(difference.max()))
    agree = np.concatenate(agree)
    layers = []
    for name, rows in counts.items():
        sizes, differing, tops = zip(*rows, strict=True)
        layers.append(LayerParity(name, sum(sizes), sum(differing), max(tops)))
    return ParityReport(
        images=len(agree),
        top1_agreement=float(agree.mean()),
        equal_outputs=float(np.concatenate(equal).mean()),
        largest_difference=largest,
        layers=tuple(layers),
    )


def _difference(want, got):
    """Count, number of differences and largest difference."""
    difference = np.abs(want.reshape(-1) - got.reshape(-1))
    return difference.size, int(np.count_nonzero(difference)), int(difference.max())


@dataclasses.dataclass(frozen=True)
class _Input:
    """A batch of input integers, and the step of their grid."""

    integers: np.ndarray
    step: np.float32


def _keras_integers(graph, batch):
    """The integers of every stored tensor by layer name, the input's, and the output's."""
    expected, sources = {}, []

    def observe(node, results):
        if not isinstance(node.layer, Quantize):
            return
        (y,), step = results, node.layer.step
        integers = np.rint(ops.convert_to_numpy(y / step)).astype(np.int32)
        before = quantized_node(graph, node)
        if before.is_input:
            sources.append(_Input(integers, np.float32(step)))
        else:
            expected[before.name] = integers

    outputs = run_batches(graph, [batch], observe=observe)
    if not sources or not expected:
        raise ValueError(f"model {graph.name!r} is not quantized")
    first = graph.output_tensors[0]
    (output, *_) = leaves(outputs)
    output = np.rint(ops.convert_to_numpy(output / grid_layer(graph, first).step))
    return expected, sources[0], output.astype(np.int32)


class _File:
    """A `.tflite` file with two interpreters: the usual one, and one that keeps tensors."""

    def __init__(self, path, shape):
        from repq_tf.deployment import ends, flatbuffer, storage  # LiteRT's schema

        content = path.read_bytes()
        try:
            model = flatbuffer.load(content)
            tensors = model.subgraphs[0].tensors
            self.indices = {tensor.name.decode(): k for k, tensor in enumerate(tensors)}
            self.container = "int4" if storage.has_int4(model) else "int8"
            self.pixels = model if ends.takes_pixels(model) else None
            self.quantization = [_quantization(tensor) for tensor in tensors]
            entry = tensors[model.subgraphs[0].inputs[0]]
            open_shape = entry.shape if entry.shapeSignature is None else entry.shapeSignature
            have = tuple(None if n < 0 else int(n) for n in open_shape[1:])
        except Exception as error:
            raise ValueError(f"{path} is not a whole TFLite file: {error}") from error
        if not fits(have, shape):
            raise ValueError(f"{path} takes images of shape {have}. Received: {shape}")
        self.interpreters = {keep: _interpreter(content, keep) for keep in (True, False)}

    def tensors(self, source, names):
        """Integers, zero points removed, of inner tensors."""
        interpreter = self._run(source, keep=True)
        return {
            name: interpreter.get_tensor(self.indices[name]).astype(np.int32)
            - self.quantization[self.indices[name]][1]
            for name in names
        }

    def output(self, source):
        """Integers of the model's first output."""
        interpreter = self._run(source, keep=False)
        detail = interpreter.get_output_details()[0]
        values = interpreter.get_tensor(detail["index"])
        if detail["dtype"] == np.float32:
            inner = self.indices[detail["name"].removesuffix("_float32")]
            return np.rint(values / self.quantization[inner][0]).astype(np.int32)
        return values.astype(np.int32) - self.quantization[detail["index"]][1]

    def _run(self, source, keep):
        interpreter = self.interpreters[keep]
        detail = interpreter.get_input_details()[0]
        if tuple(detail["shape"]) != source.integers.shape:
            interpreter.resize_tensor_input(detail["index"], source.integers.shape)
            interpreter.allocate_tensors()
        if self.pixels is not None:
            from repq_tf.deployment import ends

            values = ends.pixels_of(self.pixels, source.integers)
        elif detail["dtype"] == np.float32:
            values = (source.integers * source.step).astype(np.float32)
        else:
            values = (source.integers + detail["quantization"][1]).astype(detail["dtype"])
        interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        return interpreter


def _quantization(tensor):
    """Scale and zero point, (0, 0) for a tensor without."""
    have = tensor.quantization
    if have is None or have.scale is None or have.zeroPoint is None:
        return 0.0, 0
    return have.scale[0], int(have.zeroPoint[0])


def _interpreter(content, keep):
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        # It warns that keeping tensors takes memory.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = Interpreter(
            model_content=content, num_threads=2, experimental_preserve_all_tensors=keep
        )
    interpreter.allocate_tensors()
    return interpreter
