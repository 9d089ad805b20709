"""The first steps of a quantized model's kernels and tensors, by their range rules."""

from collections.abc import Mapping, Sequence

import numpy as np

from repq_tf.calibration.batch_norm import Readings
from repq_tf.calibration.execution import Calls
from repq_tf.calibration.output_error import feature_step, kernel_step
from repq_tf.calibration.patches import PatchSampler, kernel_matrix
from repq_tf.calibration.prepared import feature_reading
from repq_tf.calibration.samples import Sampler
from repq_tf.graphs import Graph, Node
from repq_tf.keras_api import Array, ops
from repq_tf.kernels import AffineKernel
from repq_tf.layers import (
    Quantize,
    QuantizedAdd,
    QuantizedPReLU,
    QuantizedSubtract,
    ReparamConv,
)
from repq_tf.quantizers import LSQ

# Layers that add, and how many steps of a sum are at most one of what is added: a finer one
# would hold little but the rounding of that, and runtimes add no ratios of 256.
_SUMS = QuantizedAdd | QuantizedSubtract | QuantizedPReLU
_FINEST = 4


def set_kernel_step(
    grid: LSQ,
    affine: AffineKernel,
    readings: Readings,
    rule: str,
    images: int,
    correct: str | None,
) -> None:
    """Sets the steps of a block's kernel.

    Args:
        grid: its `LSQ`.
        affine: the `AffineKernel` that the block merges into.
        readings: the `Readings` of the block's input.
        rule: the range rule.
        images: the number of images.
        correct: what is corrected of what quantization does, as in `calibrate`.
    """
    kernel = ops.convert_to_numpy(affine.kernel)
    if rule == "output_error" and not (grid.is_uniform and kernel.any()):
        rule = "min_error"
    if rule != "output_error":
        grid.initialize(kernel, rule)
        return
    sampler = PatchSampler(affine.size, affine.groups, images)
    for reading in readings:
        sampler.add(reading)
    grid.set_step(
        kernel_step(sampler.drawn(), kernel_matrix(affine), grid, correct is not None)
    )


class TensorSteps:
    """Sets the steps of stored tensors, in the order in which the model makes them.

    Args:
        graph: the quantized model's graph.
        rules: the range rule of each `Quantize`, by its name.
        shared: the `Sampler`s of tensors that share a quantizer, by the name of that.
        images: the number of images.
        correct: what is corrected of what quantization does, as in `calibrate`.

    Attributes:
        drawn: values of what blocks make, by name; filled from outside.
    """

    def __init__(
        self,
        graph: Graph,
        rules: Mapping[str, str],
        shared: Mapping[str, Sequence[Sampler]],
        images: int,
        correct: str | None,
    ) -> None:
        self._graph, self._rules, self._shared = graph, rules, shared
        self._images, self._corrected = images, correct is not None
        self._done: set[str] = set()
        self.drawn: dict[str, Array | None] = {}

    def set(self, node: Node, calls: Calls) -> None:
        """Sets the step of a node's `Quantize`, unless it is fixed or set already.

        Args:
            node: its node.
            calls: its `Calls`.
        """
        layer = node.layer
        if layer.fixed_step is not None or layer.name in self._done:
            return
        self._done.add(layer.name)
        grid, before = layer.activation_quantizer, self._steps_before(node)
        self._initialize(node, calls, before)
        if isinstance(layer, _SUMS) and float(grid.step) < max(before) / _FINEST:
            grid.set_step(np.float32(max(before) / _FINEST))

    def _initialize(self, node: Node, calls: Calls, before: Sequence[float]) -> None:
        layer = node.layer
        rule, grid = self._rules[layer.name], layer.activation_quantizer
        read = self._read(node, calls) if rule == "output_error" else []
        if any(patches.any() for patches, _ in read):
            grid.set_step(feature_step(read, grid, self._corrected))
            return
        rule = "min_error" if rule == "output_error" else rule
        values = self._values(node, calls, rule)
        if before and not values.any():
            grid.set_step(np.float32(max(before)))
        else:
            grid.initialize(values, rule)

    def _steps_before(self, node: Node) -> list[float]:
        """The steps of what a tensor is made of, which one of zeros takes; none of an input."""
        found, waiting = [], list(node.inputs)
        while waiting:
            source = self._graph.nodes[waiting.pop().node]
            if isinstance(source.layer, Quantize):
                found.append(float(source.layer.step))
            else:
                waiting += source.inputs
        return found

    def _read(self, node: Node, calls: Calls) -> list[tuple[Array, Array]]:
        """The patches and the kernel of each convolution that reads a tensor.

        Of none where tensors share a step, which then is not a question of these alone, and at
        16 bits, where clipping is the only error that counts.
        """
        layer = node.layer
        readers = [
            reader.layer
            for reader in self._graph.consumers(node.name)
            if isinstance(reader.layer, ReparamConv) and reader.inputs[0].node == node.name
        ]
        if not readers or layer.name in self._shared or layer.bits > 8:
            return []
        kernels = [reader.inner.merge() for reader in readers]
        samplers = [PatchSampler(k.size, k.groups, self._images) for k in kernels]
        for args, _ in calls:
            values = layer.values(*args)
            for reader, sampler in zip(readers, samplers, strict=True):
                sampler.add(feature_reading(reader, values))
        patches = [sampler.drawn() for sampler in samplers]
        return list(zip(patches, map(kernel_matrix, kernels), strict=True))

    def _values(self, node: Node, calls: Calls, rule: str) -> Array:
        """The values of a tensor by which a rule decides."""
        layer = node.layer
        if layer.name in self._shared:
            return np.concatenate([s.values(layer.bits) for s in self._shared[layer.name]])
        if type(layer) is Quantize and layer.bits <= 8 and rule in ("min_error", "mae"):
            values = self.drawn.get(node.inputs[0].node)
            if values is not None and values.any():
                return values
        sampler = Sampler(layer.name, self._images, rule=rule)
        for args, _ in calls:
            sampler.add(layer.values(*args))
        return sampler.values(layer.bits)
