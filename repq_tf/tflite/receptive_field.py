"""The receptive field of an image-to-image `.tflite` file: how far a pixel of it sees."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from repq_tf.tflite.operators import OPERATORS
from repq_tf.tflite.reading import operator_name, tensor_data

_SAME = 0


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What an output pixel depends on.

    Attributes:
        scale: how many times larger than its input the output is.
        radius: how many pixels of the input, to every side of the one that an output pixel
            lies in, can change it.
    """

    scale: int
    radius: int


@dataclasses.dataclass(frozen=True)
class _Field:
    """The field of a tensor that is `scale` times as large as the input.

    On each axis, its pixel j depends on the pixels from `(j - before) // scale` to
    `(j + after) // scale` of the input, and it is `missing` pixels too small.
    """

    scale: int = 1
    before: tuple = (0, 0)
    after: tuple = (0, 0)
    missing: tuple = (0, 0)

    def widened(
        self, before: Iterable[int], after: Iterable[int], missing: Iterable[int]
    ) -> "_Field":
        return _Field(
            self.scale,
            tuple(a + b for a, b in zip(self.before, before, strict=True)),
            tuple(a + b for a, b in zip(self.after, after, strict=True)),
            tuple(a + b for a, b in zip(self.missing, missing, strict=True)),
        )

    def enlarged(self, size: int) -> "_Field":
        return _Field(
            self.scale * size,
            tuple(size * n for n in self.before),
            tuple(size * n for n in self.after),
            tuple(size * n for n in self.missing),
        )


def receptive_field(model: Any) -> ReceptiveField:
    """Reads the receptive field of a fully convolutional network from its operators.

    A convolution widens the field by its kernel, depth to space refines it (int16 files join
    channels as a batch, and have batch to space), and operators on single pixels keep it;
    nothing else is allowed, so that the network computes the same at every place of an image
    and only the zeros at the borders tell where it is.

    Args:
        model: a parsed file, of `reading.read`, with one input and one output
            `(batch, height, width, channels)`.

    Returns:
        A `ReceptiveField`.

    Raises:
        ValueError: the file is no such network; the operator is named.

    Example:
        >>> receptive_field(reading.read("model.tflite")[1])
        ReceptiveField(scale=2, radius=6)
    """
    (graph,) = model.subgraphs
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            "the file must have one input and one output. Received: "
            f"{len(graph.inputs)} and {len(graph.outputs)}"
        )
    ends = [graph.tensors[int(i)] for i in (*graph.inputs, *graph.outputs)]
    if any(len(end.shape) != 4 for end in ends):
        raise ValueError("the file's input and output must be images")
    fields = {int(graph.inputs[0]): _Field()}
    for operator in graph.operators:
        inputs = [int(i) for i in operator.inputs if i >= 0]
        sources = [fields[i] for i in inputs if i in fields]
        constants = [graph.tensors[i] for i in inputs if i not in fields]
        if not sources:  # of weights alone
            continue
        name = operator_name(model, operator)
        if name == "GATHER" and inputs[0] not in fields:  # a table, looked up by pixels
            field = sources[0]
        elif name == "PAD":
            before, after = tensor_data(model, constants[0])[1:3].T.tolist()
            missing = [-b - a for b, a in zip(before, after, strict=True)]
            field = sources[0].widened(before, [-n for n in before], missing)
        elif name == "SPLIT" and tensor_data(model, constants[0]).item() in (3, -1):
            field = sources[0]
        elif name == "BATCH_TO_SPACE_ND":
            size, crops = (tensor_data(model, constant) for constant in constants)
            if size[0] != size[1] or crops.any():
                raise ValueError(f"operator {name} crops, or its blocks are no squares")
            field = sources[0].enlarged(int(size[0]))
        else:
            field = _apply(name, operator.builtinOptions, sources, constants)
        fields.update({int(i): field for i in operator.outputs})
    field = fields[int(graph.outputs[0])]
    if any(field.missing):
        height, width = (-n for n in field.missing)
        raise ValueError(
            f"its output must be {field.scale} times as large as its input; its height differs "
            f"from that by {height:+} and its width by {width:+} pixels (convolutions without "
            "padding?)"
        )
    reach = (*field.before, *field.after)
    return ReceptiveField(field.scale, max(0, *(-(-n // field.scale) for n in reach)))


def _apply(
    name: str, options: Any, sources: Sequence[_Field], constants: Sequence[Any]
) -> _Field:
    """The field of an operator's output."""
    # Constants of what works on each place alone must not depend on the place.
    if name in OPERATORS and OPERATORS[name].pointwise:
        if any(max(constant.shape[-3:-1], default=1) > 1 for constant in constants):
            raise ValueError(f"operator {name} has a constant for each place of an image")
        return _union(name, sources)
    if name == "CONCATENATION" and options.axis in (0, 3, -1):
        return _union(name, sources)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        dilation = options.dilationHFactor, options.dilationWFactor
        if (options.strideH, options.strideW, *dilation) != (1, 1, 1, 1):
            raise ValueError(f"operator {name} has strides or is dilated")
        total = [int(size) - 1 for size in constants[0].shape[1:3]]
        same = options.padding == _SAME
        before = [n // 2 if same else 0 for n in total]
        after = [n - b for n, b in zip(total, before, strict=True)]
        return sources[0].widened(before, after, [0, 0] if same else total)
    if name == "DEPTH_TO_SPACE":
        return sources[0].enlarged(options.blockSize)
    raise ValueError(f"operator {name} does not compute the same at every place of an image")


def _union(name: str, sources: Sequence[_Field]) -> _Field:
    """The field of a tensor that is computed from several."""
    if len({(source.scale, source.missing) for source in sources}) > 1:
        raise ValueError(f"operator {name} joins images of different sizes")
    befores, afters = zip(*((s.before, s.after) for s in sources), strict=True)
    before = tuple(map(max, zip(*befores, strict=True)))
    after = tuple(map(max, zip(*afters, strict=True)))
    return dataclasses.replace(sources[0], before=before, after=after)
