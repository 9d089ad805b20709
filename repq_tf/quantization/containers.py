"""Containers of weights: kernels of at most 4 bits stored as INT8, or two a byte as INT4.

The integers are the same. What differs are the runtime's kernels: those of INT8 are XNNPACK's,
which rescale in float32; INT4 convolutions run on the runtime's own, which rescale in fixed
point (`repq_tf.arithmetic.rescale`) and can give the next integer where a value lies between
two. `with_container` makes the Keras model round like the file of its container.
"""

import dataclasses
from typing import Any

from repq_tf.arithmetic import fits_four_bits
from repq_tf.graphs import Graph, copy_call, read_native, rebuild
from repq_tf.keras_api import Layer, keras, ops
from repq_tf.layers import DenseBlock, Quantize, ReparamConv
from repq_tf.quantization.grids import input_quantizer

CONTAINERS = ("int8", "int4")


def check_container(container: str) -> None:
    """Raises ValueError when a container is not one of `CONTAINERS`."""
    if container not in CONTAINERS:
        raise ValueError(f"container must be one of {CONTAINERS}. Received: {container!r}")


def check_four_bits(graph: Graph) -> None:
    """Raises ValueError when a model has no kernel that "int4" would store in 4 bits."""
    layers = [node.layer for node in graph.nodes.values()]
    blocks = [layer for layer in layers if isinstance(layer, ReparamConv)]
    found = {block.weight_bits for block in blocks if block.weight_bits is not None}
    wide = [layer.name for layer in layers if getattr(layer, "wide_tap", False)]
    if wide:
        raise ValueError(
            "container='int4' cannot hold wide taps, which have 8 bits. Received: a model with "
            f"wide_tap in layers {wide}"
        )
    codes = [block.name for block in blocks if block.weight_levels == "cluster"]
    if codes:
        raise ValueError(
            "container='int4' cannot hold codebooks, whose codes have 8 bits. Received: a model"
            f" with weight_levels='cluster' in layers {codes}"
        )
    odd = [b.name for b in blocks if b.weight_levels == "odd" and (b.weight_bits or 0) > 3]
    if odd:
        raise ValueError(
            "container='int4' holds odd levels of at most 3 bits, whose outer ones are 7. "
            f"Received: a model with weight_levels='odd' of 4 bits in layers {odd}"
        )
    if not found or min(found) > 4:
        there = " and ".join(map(str, sorted(found))) + " bits" if found else "floating point"
        raise ValueError(
            "container='int4' is for models with kernels of at most 4 bits; quantize with "
            f"weight_bits=4 or fewer. Received: a model with kernels of {there} alone"
        )


def with_container(model: keras.Model, container: str) -> keras.Model:
    """Returns a copy of a quantized model that rounds like its file of a container.

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
    check_container(container)
    graph = read_native(model)
    copies: dict[int, Layer] = {}
    if container == "int4":
        check_four_bits(graph)
    return rebuild(
        in_container(graph, container),
        lambda node, args, kwargs: copy_call(node, args, kwargs, copies),
    )


def in_container(graph: Graph, container: str) -> Graph:
    """The graph of a quantized model whose calls round like the file of a container."""
    packed = four_bit_layers(graph)[0] if container == "int4" else []
    nodes = dict(graph.nodes)
    options: dict[str, Any]
    for node in graph.nodes.values():
        if isinstance(node.layer, ReparamConv):
            source, options = node, {"wide": True}
        elif type(node.layer) is Quantize:
            source, options = graph.nodes[node.inputs[0].node], {"rounding": "twice"}
        else:
            continue
        given = input_quantizer(graph, source)
        if given is not None and given.bits <= 8:  # with 16, both containers round alike
            own = source.name in packed and not _runs_on_xnnpack(source.layer)
            kwargs = {k: v for k, v in node.kwargs.items() if k not in options}
            kwargs |= options if own else {}
            nodes[node.name] = dataclasses.replace(node, kwargs=kwargs)
    return dataclasses.replace(graph, nodes=nodes)


def _runs_on_xnnpack(layer: Layer) -> bool:
    """Whether XNNPACK takes a layer's INT4 kernel: dense, with an even number of inputs."""
    return isinstance(layer, DenseBlock) and layer.inner.kernel.shape[-2] % 2 == 0


def four_bit_layers(graph: Graph) -> tuple[list[str], list[str]]:
    """The layers whose kernels the "int4" container stores in 4 bits.

    Those of at most 4 bits, but for grouped and depthwise convolutions, which have few weights
    and no fast INT4 kernel. A channel with a negative gain has its integers negated, so that
    its scale is positive, and -8 becomes 8: a layer with an 8 stays INT8.

    Returns:
        `(names, left)`: the names of those layers, and of the ones with an 8.
    """
    names: list[str] = []
    left: list[str] = []
    for node in graph.nodes.values():
        block = node.layer
        if not isinstance(block, ReparamConv) or (block.weight_bits or 8) > 4:
            continue
        source = input_quantizer(graph, node)
        if source is None:
            continue
        integers, _, _, groups = block.integer_weights(source.step)
        if groups == 1:
            fits = fits_four_bits(ops.convert_to_numpy(integers))
            (names if fits else left).append(node.name)
    return names, left
