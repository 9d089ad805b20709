"""`synthesize_images`: calibration images of a network's own, where there are no others."""

from typing import Any

import numpy as np

from repq_tf.arguments import boolean, number, positive
from repq_tf.branches import BatchNorm, FeatureReading, exact_moments
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.prepared import call, feature_reading, positional
from repq_tf.graphs import Graph, Node, evaluate, read_graph
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.kernels import AffineKernel
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import normalized_axis
from repq_tf.progress import Progress
from repq_tf.quantization.quantize import check_float

# Of Adam, for images of normal values, as ZeroQ has it; and where its cosine ends.
_RATE, _LAST_RATE = 0.1, 0.01
# Of a batch norm's largest deviation: channels below it are as good as constant.
_CONSTANT = 1e-3


def synthesize_images(
    model: keras.Model,
    count: int = 64,
    iterations: int = 300,
    seed: int = 0,
    verbose: bool = True,
) -> Array:
    """Returns images on which a network's features have its batch norms' moments.

    They are for calibration where the training images are not at hand (ZeroQ,
    arXiv 2001.00281): whatever the network was trained on, its batch norms remember the mean
    E and the variance V of what they normalized. From normal random values on, images x are
    trained by Adam, through the network as it is in inference, to

        min_x  mean over batch norms and their channels of
               (E[y] - E)^2 / V + (sqrt(V[y] / V) - 1)^2,

    y the features that a batch norm gets, of the images of a batch. They look like nothing,
    but they move every layer through the range that it was trained in. Colours and pixel values
    are not those of photographs; where the input's grid is known, tell `quantize` its
    `input_step`.

    Args:
        model: a Functional or Sequential Keras 3 float model of our blocks and stock layers,
            not merged: with its batch norms, trained.
        count: how many images.
        iterations: of Adam, for each batch.
        seed: of the random values.
        verbose: whether to show a progress bar.

    Returns:
        A float32 array `(count, height, width, channels)`.

    Raises:
        ValueError: an argument is bad, the model is quantized, has no batch norms, or takes
            inputs of no fixed size.

    Example:
        >>> images = repq_tf.synthesize_images(model)
        >>> quantized = repq_tf.post_training_quantize(model, calibration_data=images)
    """
    positive(count, "count")
    positive(iterations, "iterations")
    number(seed, "seed", least=0)
    boolean(verbose, "verbose")
    graph = read_graph(model)
    check_float(graph)
    if not any(_has_norms(node) for node in graph.nodes.values()):
        raise ValueError(
            f"model {model.name!r} has no batch norms, which images could be made from; give "
            "the network before it was merged, or real images"
        )
    if isinstance(model.input_shape, list | dict):
        raise ValueError(
            f"model {model.name!r} must have one input, of which images are made; give real "
            f"ones. Received: inputs of the shapes {model.input_shape}"
        )
    shape = tuple(model.input_shape[1:])
    if None in shape:
        raise ValueError(
            "images can be made for a model with an input of a fixed size. Received: a model "
            f"with an input of {shape}"
        )
    at_once = min(count, fitting(graph)(shape))
    batches = -(-count // at_once)
    progress = Progress("images", batches * iterations, "step", verbose)
    random = np.random.default_rng(seed)
    found = []
    for _ in range(batches):
        start = random.normal(size=(at_once, *shape)).astype(np.float32)
        found.append(_trained(graph, start, iterations, progress))
    return np.concatenate(found)[:count]


class _Images(keras.Model):
    """Images as the weights of a model, whose output is how far the moments are off."""

    def __init__(self, graph: Graph, start: Array) -> None:
        super().__init__(name="images")
        self._evaluated = graph
        self.images = self.add_weight(shape=start.shape, name="images")
        self.images.assign(start)

    def call(self, index: Tensor) -> Tensor:
        """The objective, in the shape of a batch of one."""
        return ops.zeros_like(index) + _distance(self._evaluated, self.images)


def _trained(graph: Graph, start: Array, iterations: int, progress: Progress) -> Array:
    model = _Images(graph, start)
    last = _LAST_RATE / _RATE
    rate = keras.optimizers.schedules.CosineDecay(_RATE, iterations, alpha=last)
    model.compile(keras.optimizers.Adam(rate), lambda _, distance: ops.mean(distance))
    index = np.zeros((1, 1), np.float32)
    for _ in range(iterations):
        model.train_on_batch(index, index)
        progress.advance()
    return ops.convert_to_numpy(model.images)


def _distance(graph: Graph, images: Tensor) -> Tensor:
    """How far the moments of images are from those of a network's batch norms."""
    distances: list[Tensor] = []

    def apply(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        args, kwargs = positional(node.layer, args, kwargs)
        distances.extend(_off(*found) for found in _found(node.layer, args[0]))
        return call(node.layer, args, kwargs)

    evaluate(graph, lambda node: ops.convert_to_tensor(images), apply)
    return ops.mean(ops.concatenate(distances))


class _Recording(FeatureReading):
    """The reading of inference, which notes what moments its batch norms would find."""

    found: list[tuple[Any, Tensor, Tensor]]

    def _derive(self, *place: Any) -> "_Recording":
        derived = super()._derive(*place)
        derived.found = self.found
        return derived

    def moments(self, batch_norm: Any, affine: AffineKernel) -> tuple[Tensor, Tensor]:
        """The moving moments; notes those of the features."""
        self.note(batch_norm, affine)
        return self.moving(batch_norm.statistics)

    def note(self, batch_norm: Any, affine: AffineKernel) -> None:
        """Notes the moments of what a batch norm gets from a convolution of the features."""
        place = self.strides, self.window
        moments = exact_moments(self.x, self.composed(affine), *place, synchronized=False)
        self.found.append((batch_norm.statistics, *moments))


def _has_norms(node: Node) -> bool:
    if isinstance(node.layer, ReparamConv):
        return any(isinstance(branch, BatchNorm) for branch in node.layer.expression.walk())
    return isinstance(node.layer, keras.layers.BatchNormalization)


def _found(layer: Any, x: Tensor) -> list[tuple[Any, Tensor, Tensor]]:
    """Of each batch norm that a layer is or holds: its statistics, and the moments it gets."""
    if isinstance(layer, ReparamConv):
        reading = feature_reading(layer, x)
        recording = _Recording(reading.x, reading.window, reading.strides)
        recording.found = []
        affine = layer.inner.merge(recording)
        if layer.root is not None:
            recording.note(layer.root, affine)
        return recording.found
    if isinstance(layer, keras.layers.BatchNormalization):
        channel = (normalized_axis(layer) or -1) % len(x.shape)
        axes = [axis for axis in range(len(x.shape)) if axis != channel]
        return [(layer, *ops.moments(x, axes))]
    return []


def _off(statistics: Any, mean: Tensor, variance: Tensor) -> Tensor:
    """How far each channel's moments are off, in parts of its deviation."""
    moving = ops.convert_to_tensor(statistics.moving_mean)
    wanted = ops.sqrt(ops.convert_to_tensor(statistics.moving_variance))
    unit = ops.maximum(wanted, _CONSTANT * ops.max(wanted) + 1e-12)
    found = ops.sqrt(variance + 1e-12)
    return ops.square((mean - moving) / unit) + ops.square((found - wanted) / unit)
