"""Quantized models whose inference is that of some runtime, integer by integer.

The integers of a file are the same everywhere; runtimes round what they compute of them in
different ways (`repq_tf.arithmetic.runtimes`, `repq_tf.arithmetic.rescale`). A model tells the
layers which by arguments of their calls.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from repq_tf.arithmetic.runtimes import check_runtime, is_fixed
from repq_tf.graphs import Graph, Node, copy_call, read_native, rebuild
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import (
    DenseBlock,
    Quantize,
    QuantizedAdd,
    QuantizedHardSigmoid,
    QuantizedLeakyReLU,
    QuantizedLookup,
    QuantizedMean,
    QuantizedMultiply,
    QuantizedPReLU,
    QuantizedSoftmax,
    QuantizedSubtract,
    QuantizedUpSampling2D,
    ReparamConv,
)
from repq_tf.quantization.containers import (
    check_container,
    check_four_bits,
    four_bit_layers,
    runs_on_xnnpack,
)
from repq_tf.quantization.grids import input_quantizer
from repq_tf.quantization.operators import activation_name

# Layers whose arithmetic is not that of all runtimes.
_OPERATORS = (
    QuantizedAdd,
    QuantizedHardSigmoid,
    QuantizedLeakyReLU,
    QuantizedLookup,
    QuantizedMean,
    QuantizedMultiply,
    QuantizedPReLU,
    QuantizedSoftmax,
    QuantizedSubtract,
    QuantizedUpSampling2D,
)
# The operators of functions that a runtime lacks.
_LACKING = {"tflm": "GELU", "reference": "ELU"}
_OPTIONS = ("wide", "rounding", "limit", "runtime")


def with_runtime(model: keras.Model, runtime: str, container: str = "int8") -> keras.Model:
    """Returns a copy of a quantized model whose inference is that of a runtime.

    A model that `repq_tf.quantize` returns computes what LiteRT with XNNPACK does on x86. On
    other machines the same file rounds some values to the next integer; the copy computes
    exactly what it computes there, so its accuracy is the file's.

    Args:
        model: what `repq_tf.quantize` returned, trained or not.
        runtime: "xnnpack" (LiteRT on x86), "xnnpack_arm" (LiteRT on phones and other 64-bit
            ARM), "tflm" (TensorFlow Lite Micro) or "reference" (LiteRT's reference kernels).
        container: of the file: "int8", or "int4" where kernels of at most 4 bits are stored two
            a byte, which other kernels of the runtime take.

    Returns:
        A `keras.Model` with the same layers and weights.

    Raises:
        ValueError: an argument is bad, or the runtime lacks an operator of the file: GELU in
            TensorFlow Lite Micro, ELU among the reference kernels.

    Example:
        >>> phone = repq_tf.with_runtime(qat, "xnnpack_arm")
        >>> phone.evaluate(images, labels)
    """
    check_runtime(runtime)
    check_container(container)
    graph = read_native(model)
    if container == "int4":
        check_four_bits(graph)
    copies: dict[int, Layer] = {}
    return rebuild(
        in_runtime(graph, runtime, container),
        lambda node, args, kwargs: copy_call(node, args, kwargs, copies),
    )


def with_container(model: keras.Model, container: str) -> keras.Model:
    """Returns a copy of a quantized model that rounds like its file of a container, on x86.

    `export_tflite(model, path, container="int4")` writes the same file for both; in
    inference, the copy computes exactly what that file computes, where the model itself may be
    a step off in a layer.

    Args:
        model: what `repq_tf.quantize` returned, trained or not.
        container: "int8" or "int4".

    Returns:
        A `keras.Model` with the same layers and weights.

    Example:
        >>> repq_tf.export_tflite(qat, "model.tflite", container="int4")
        >>> repq_tf.with_container(qat, "int4").evaluate(images, labels)
    """
    return with_runtime(model, "xnnpack", container)


def in_runtime(graph: Graph, runtime: str, container: str = "int8") -> Graph:
    """The graph of a quantized model whose calls compute as a runtime, of a file's container.

    Raises:
        ValueError: the runtime lacks an operator of the file.
    """
    check_operators(graph, runtime)
    packed = frozenset(four_bit_layers(graph)[0] if container == "int4" else ())
    return dataclasses.replace(
        graph,
        nodes={
            name: dataclasses.replace(
                node,
                kwargs={
                    **{k: v for k, v in node.kwargs.items() if k not in _OPTIONS},
                    **_options(graph, node, runtime, packed),
                },
            )
            for name, node in graph.nodes.items()
        },
    )


def check_operators(graph: Graph, runtime: str) -> None:
    """Raises ValueError if a runtime lacks an operator of a quantized model's file."""
    lacking = _LACKING.get(runtime)
    functions = [n for n in graph.nodes.values() if isinstance(n.layer, QuantizedLookup)]
    found = [n.name for n in functions if _operator_of(graph, n) == lacking]
    if lacking and found:
        raise ValueError(
            f"runtime={runtime!r} has no operator {lacking}, so it cannot run the file. "
            f"Received: a model with the layers {', '.join(found)}"
        )


def _operator_of(graph: Graph, node: Node) -> str | None:
    """The file's operator of a `QuantizedLookup`; None where it holds the table."""
    given = input_quantizer(graph, node)
    assert given is not None  # what it reads is stored
    step = ops.cast(given.step, "float32")
    return node.layer.operator_of(step)  # type: ignore[union-attr]


def _options(graph: Graph, node: Node, runtime: str, packed: Collection[str]) -> dict[str, Any]:
    """The arguments of a node's call that tell it the runtime; none where it is usual."""
    if isinstance(node.layer, _OPERATORS):
        return {} if runtime == "xnnpack" else {"runtime": runtime}
    if isinstance(node.layer, ReparamConv):
        usual = _rounding(graph, node, runtime, packed) == "float"
        return {} if usual or input_quantizer(graph, node) is None else {"wide": True}
    if type(node.layer) is not Quantize:
        return {}
    source = graph.nodes[node.inputs[0].node]
    rounding = _rounding(graph, source, runtime, packed)
    options: dict[str, Any] = {} if rounding == "float" else {"rounding": rounding}
    if options and isinstance(source.layer, ReparamConv):
        if activation_name(source.layer) == "relu6":
            options["limit"] = 6.0
    return options


def _rounding(graph: Graph, source: Node, runtime: str, packed: Collection[str]) -> str:
    """How what a node makes is rounded to the grid behind it."""
    layer = source.layer
    if source.is_input:
        return "away" if is_fixed(runtime) else "float"
    if isinstance(layer, Quantize):  # regridded by a depthwise convolution
        if layer.bits > 8:
            return "reduced"
        return "away" if is_fixed(runtime) else "float"
    given = input_quantizer(graph, source) if isinstance(layer, ReparamConv) else None
    if given is None:
        return "float"
    dense = isinstance(layer, DenseBlock)
    if given.bits > 8 and layer.groups > 1:
        return "reduced"
    if runtime == "reference":
        return "once" if dense else "away"
    if runtime == "tflm":
        return "away_single" if dense and layer.filters == 1 else "away"
    fixed = given.bits > 8 or (source.name in packed and not runs_on_xnnpack(layer))
    if not fixed:
        return "float"
    return "twice" if runtime == "xnnpack" else "once"
