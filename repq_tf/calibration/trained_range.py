"""Whether images have the range of those that a network was trained on."""

import numpy as np

from repq_tf.branches import BatchNorm
from repq_tf.calibration.batches import Batch, input_of
from repq_tf.calibration.moments import Moments
from repq_tf.calibration.prepared import MergedBlock, call
from repq_tf.graphs import Graph, evaluate
from repq_tf.keras_api import Layer, Tensor, keras, ops
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import normalized_axis
from repq_tf.user_warning import warn_user

# Features this many times as large, or as small, as those that a batch norm was trained
# on come from images of another range.
_OTHER_RANGE = 20.0
# So few pixels, or vectors, deviate less than all do.
_FEW = 8


def warn_of_other_range(graph: Graph, batch: Batch, name: str) -> None:
    """Compares features of images with those that the first batch norm was trained on.

    Nothing is known of a network without batch norms, or whose first one was never trained.

    Args:
        graph: of the model.
        batch: images.
        name: what to call them in a message.

    Warns:
        UserWarning: the features are of another size.
    """
    node = next((node for node in graph.nodes.values() if _is_trained(node.layer)), None)
    if node is None:
        return
    first, *_ = evaluate(
        graph.before(node.name),
        lambda node: input_of(batch, node),
        lambda node, args, kwargs: call(node.layer, args, kwargs),
    )
    smallest, largest = _sizes(node.layer, first)
    if largest <= 1 / _OTHER_RANGE or smallest >= _OTHER_RANGE:
        ratio = smallest if smallest >= _OTHER_RANGE else largest
        warn_user(
            f"{name}: features of layer {node.part_of or node.name!r} are {ratio:.3g} times as "
            "large as those that its batch norm was trained on; give images preprocessed as in "
            "training"
        )


def _is_trained(layer: Layer) -> bool:
    """Whether it has batch norms whose statistics are not those they started with."""
    if isinstance(layer, keras.layers.BatchNormalization):
        statistics = [layer]
    elif isinstance(layer, ReparamConv):
        statistics = [node.statistics for node in _last_batch_norms(layer)]
    else:
        return False
    return any(
        ops.convert_to_numpy(of.moving_mean).any()
        or (ops.convert_to_numpy(of.moving_variance) != 1).any()
        for of in statistics
    )


def _last_batch_norms(block: ReparamConv) -> list[BatchNorm]:
    """The one behind the convolution, or those of branches whose sum is the block's output."""
    if block.root is not None:
        return [block.root]
    return [node for node in block.merged_batch_norms if node.gamma.shape[0] == block.filters]


def _sizes(layer: Layer, x: Tensor) -> tuple[float, float]:
    """The features' size as a part of what batch norms know; median of channels.

    Args:
        layer: a batch norm, whose input is judged, or a block with some.
        x: what it reads.

    Returns:
        The least that their root mean square may be, and the most that their deviation may.
    """
    moments = Moments()
    if isinstance(layer, ReparamConv):
        merged, norms = MergedBlock(layer, None, quantized=False), _last_batch_norms(layer)
        y, bias = merged.convolution(x), merged.bias
        inside = layer.root is None
        statistics, epsilon = norms[0].statistics, layer.epsilon
    else:
        y, bias = ops.moveaxis(x, normalized_axis(layer), -1), 0.0
        inside, statistics, epsilon = False, layer, layer.epsilon
    moments.add_features(y, bias)
    if inside:  # the branches' moments behind their batch norms, which add up
        gammas, betas = (
            np.stack([ops.convert_to_numpy(variable) for variable in variables])
            for variables in ([n.gamma for n in norms], [n.beta for n in norms])
        )
        offset, least = moments.mean, (gammas**2).sum(0)
        most = least + betas.sum(0) ** 2
    else:
        offset = moments.mean - ops.convert_to_numpy(statistics.moving_mean)
        moving = ops.convert_to_numpy(statistics.moving_variance)
        least, most = _variances(moving, statistics.momentum)
    few = np.prod(y.shape[:-1]) < _FEW
    return (
        _median_size(moments.variance + offset**2, most, epsilon),
        1.0 if few else _median_size(moments.variance, least, epsilon),
    )


def _variances(moving: np.ndarray, momentum: float) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest variances that the steps so far may have averaged.

    A moving variance starts at 1: after k steps of momentum m it is m^k + (1 - m^k) times the
    features' variance. So m^k is at most the smallest of all channels, and m after one step.
    The largest is taken to be at most a hundred times the moving one, as m = 0.99 allows:
    with 0.999, nothing would be too large otherwise.
    """
    start = min(float(moving.min()), momentum) if momentum < 1 else 0.0
    features = np.maximum(moving - start, 0) / (1 - start)
    return np.minimum(moving, features), np.clip(features, moving, 100 * moving)


def _median_size(squares: np.ndarray, known: np.ndarray, epsilon: float) -> float:
    alive = known > epsilon
    return float(np.median(np.sqrt(squares[alive] / known[alive]))) if alive.any() else 1.0
