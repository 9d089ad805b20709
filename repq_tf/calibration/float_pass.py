"""The float network on the calibration images: what its quantized copy is compared with."""

import functools
from typing import Any

import numpy as np

from repq_tf.branches import BatchNorm
from repq_tf.calibration.batches import Batch, Stored, input_of
from repq_tf.calibration.moments import Moments, average_moments
from repq_tf.calibration.prepared import MergedBlock, call
from repq_tf.calibration.reconstruction import compared
from repq_tf.calibration.samples import Sampler
from repq_tf.calibration.thinning import thin
from repq_tf.graphs import Graph, Node, evaluate
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.layers import ReparamConv


class FloatPass:
    """Runs the float network and measures what calibration needs of it.

    Its convolutions are computed by the blocks of the quantized model, which hold the same
    weights then: merged, in float32.

    Args:
        graph: the float model's graph.
        builder: the `Builder` of the quantized model, before calibration.
        images: the number of images.
        keep_outputs: whether outputs are kept that rounding compares with.

    Attributes:
        samples: a `Sampler` of each tensor that shares a quantizer with others, by the name
            of the quantizer: `{layer name: list}`.
        merged: each block in floating point, by its name.
    """

    def __init__(
        self, graph: Graph, builder: Any, images: int, keep_outputs: bool = False
    ) -> None:
        self._graph, self._builder, self._images = graph, builder, images
        self._sites = builder.placement.sites
        self.merged = float_blocks(builder)
        # As they are before calibration.
        self._roots = {b.name: _learned_root(builder, b) for b in builder.blocks.values()}
        self._moments = {name: Moments() for name in builder.blocks}
        names = self._moments if keep_outputs else ()
        self._outputs: dict[str, Stored] = {name: Stored() for name in names}
        self._samplers: dict[str, Sampler] = {}
        self.samples: dict[str, list[Sampler]] = {}
        for group, quantizer in builder.quantizers.items():
            origins = builder.placement.origins(group)
            for site in origins if len(origins) > 1 else ():
                rule = builder.ranges[quantizer.name]
                sampler = Sampler(site.name, images, len(origins), rule)
                self._samplers[site.name] = sampler
                self.samples.setdefault(quantizer.name, []).append(sampler)

    def add(self, batch: Batch) -> None:
        """Runs the network on a batch of images."""

        def feed(node: Node) -> Tensor:
            return self._observed(node, input_of(batch, node))

        evaluate(self._graph, feed, self._apply)

    def _apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site = self._sites.get(node.name)
        if site is None and node.name not in self._builder.placement.preparing:
            return args[0]  # fused into the site before
        if node.name in self._builder.blocks:
            return self._observed(node, self._convolution(node.name, args[0]))
        first, *more = call(node.layer, args, kwargs)
        if site is not None and site.fused:
            first = keras.activations.get(site.activation)(first)
        return (self._observed(node, first), *more)

    def _observed(self, node: Node, value: Tensor) -> Tensor:
        if node.name in self._samplers:
            self._samplers[node.name].add(value)
        return value

    def _convolution(self, name: str, x: Tensor) -> Tensor:
        block = self._builder.blocks[name]
        merged = self.merged[block.name]
        y = merged.convolution(x)
        self._moments[name].add_features(
            thin(y, self._images, phases=block.upsampling), merged.bias
        )
        if name in self._outputs:
            self._outputs[name].append(
                ops.convert_to_numpy(compared(y, self._images, block.upsampling))
            )
        return merged.finish(y)

    @functools.cached_property
    def moments(self) -> dict[str, Moments]:
        """Those of each convolution's output, before a batch norm at the root.

        By the name of the block; to be read when all images are added.
        """
        calls: dict[str, list[Moments]] = {}
        for name, moments in self._moments.items():
            calls.setdefault(self._builder.blocks[name].name, []).append(moments)
        return {name: average_moments(found) for name, found in calls.items()}

    def take_outputs(self, block: ReparamConv) -> list[Stored]:
        """What a convolution makes without its bias, at the pixels that are `compared`.

        For each call of its block, of which they are forgotten; only if outputs are kept.
        """
        names = [name for name, other in self._builder.blocks.items() if other is block]
        return [self._outputs.pop(name) for name in names]

    def before_activation(self, name: str) -> tuple[Array, Array]:
        """The mean and the variance of each output of a block, before its activation.

        They are beta and gamma squared of a trained batch norm at its root; without one, those
        on the images.

        Args:
            name: of the block.
        """
        root, moments, merged = self._roots[name], self.moments[name], self.merged[name]
        if root is None:
            shift = ops.convert_to_numpy(merged.offset) - ops.convert_to_numpy(merged.bias)
            return moments.mean + shift, moments.variance
        beta, gamma = (np.asarray(ops.convert_to_numpy(v)) for v in (root.beta, root.gamma))
        return beta, np.square(gamma)

    def check(self) -> None:
        """Judges what was measured.

        Raises:
            ValueError: a layer's output is not finite.
        """
        for name, moments in self.moments.items():
            if not np.isfinite(moments.variance).all():
                raise ValueError(
                    f"layer {name!r}: its output holds NaN or infinity on calibration data"
                )


def float_blocks(builder: Any) -> dict[str, MergedBlock]:
    """The float network's convolutions, by the names of their blocks in the quantized model.

    Args:
        builder: the `Builder` of the quantized model, before calibration.

    Raises:
        ValueError: a merged kernel is not finite; the layer is named.
    """
    found = {}
    for name, block in builder.blocks.items():
        merged = MergedBlock(block, _learned_root(builder, block), quantized=False)
        if not np.isfinite(ops.convert_to_numpy(merged.kernel)).all():
            raise ValueError(f"layer {name!r}: its merged kernel holds NaN or infinity")
        found[block.name] = merged
    return found


def _learned_root(builder: Any, block: ReparamConv) -> BatchNorm | None:
    return None if block.name in builder.fresh_roots else block.root
