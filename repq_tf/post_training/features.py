"""What the features of a network are: the range of each channel of each tensor, on images."""

from typing import Any

import numpy as np

from repq_tf.calibration.batches import Batch, input_of
from repq_tf.calibration.images import Images
from repq_tf.calibration.prepared import call
from repq_tf.graphs import Graph, Node, Tensor, evaluate
from repq_tf.keras_api import Array, Layer, Shape, ops
from repq_tf.layers.stock import SEPARABLE
from repq_tf.progress import Progress

# The index, among a node's tensors, of what a separable convolution makes between its two.
INSIDE = -1


class Features:
    """The values of one tensor, of which the ends are kept for each channel.

    Attributes:
        lowest: the smallest value of each channel, `(channels,)`, over all images and pixels.
        highest: the largest one.
        shape: of one image's, the channels last.
    """

    def __init__(self) -> None:
        self.lowest: Any = np.inf
        self.highest: Any = -np.inf
        self.shape: Shape = ()

    def add(self, batch: Array) -> None:
        """Looks at a batch `(images, ..., channels)`."""
        self.shape = batch.shape[1:]
        axes = tuple(range(batch.ndim - 1))
        self.lowest = np.minimum(self.lowest, batch.min(axes))
        self.highest = np.maximum(self.highest, batch.max(axes))

    @property
    def largest(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.lowest), np.abs(self.highest))


def measure_features(
    graph: Graph, images: Images, verbose: bool = True
) -> dict[Tensor, Features]:
    """Runs a model on images, in inference, and measures every tensor.

    Args:
        graph: the `Graph` of a model.
        images: their `Stored` batches.
        verbose: whether to show a progress bar.

    Returns:
        The `Features` of each tensor of the graph, and of those `INSIDE` its nodes.

    Raises:
        ValueError: a layer makes NaN or infinity of the images; it is named.
    """
    found: dict[Tensor, Features] = {}

    def observed(node: Node, values: tuple[Any, ...], first: int = 0) -> tuple[Any, ...]:
        for index, value in enumerate(values, first):
            features = found.setdefault(Tensor(node.name, index), Features())
            features.add(np.asarray(ops.convert_to_numpy(value), np.float32))
            if not np.isfinite(features.highest - features.lowest).all():
                raise ValueError(
                    f"layer {node.name!r}: features there hold NaN or infinity on "
                    "calibration data"
                )
        return values

    def apply(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        if type(node.layer) in SEPARABLE:
            observed(node, (_between(node.layer, args[0]),), INSIDE)
        return observed(node, call(node.layer, args, kwargs))

    progress = Progress("float features", len(images), "batch", verbose)
    for k in range(len(images)):
        batch = images[k]

        def feed(node: Node, batch: Batch = batch) -> tuple[Any, ...]:
            return observed(node, (input_of(batch, node),))

        evaluate(graph, feed, apply)
        progress.advance()
    return found


def _between(layer: Layer, x: Any) -> Any:
    """What a separable convolution's depthwise one makes, `(batch, ..., channels)`."""
    y = ops.depthwise_conv(
        ops.cast(x, layer.depthwise_kernel.dtype),
        layer.depthwise_kernel,
        strides=layer.strides,
        padding=layer.padding,
        data_format=layer.data_format,
        dilation_rate=layer.dilation_rate,
    )
    return ops.moveaxis(y, 1, -1) if layer.data_format == "channels_first" else y
