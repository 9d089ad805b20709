"""Containers of weights: kernels of at most 4 bits stored as INT8, or two a byte as INT4.

The integers are the same. What differs are the runtime's kernels: those of INT8 are XNNPACK's,
which rescale in float32; INT4 convolutions run on the runtime's own, which rescale in fixed
point (`repq_tf.arithmetic.rescale`) and can give the next integer where a value lies between
two. `with_container`, of `runtimes.py`, makes the Keras model round like the file.
"""

from repq_tf.arithmetic import fits_four_bits
from repq_tf.graphs import Graph
from repq_tf.keras_api import Layer, ops
from repq_tf.layers import DenseBlock, ReparamConv
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


def runs_on_xnnpack(layer: Layer) -> bool:
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
