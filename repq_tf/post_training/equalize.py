"""`equalize`: cross-layer equalization of a float network, whose function stays."""

import functools
from typing import Any

import numpy as np

from repq_tf.arguments import boolean, number, positive
from repq_tf.calibration.execution import fitting, run_batch
from repq_tf.calibration.images import Images, store_images
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, Tensor, copy_call, leaves, read_graph, rebuild
from repq_tf.keras_api import keras, ops
from repq_tf.layers import ReparamConv
from repq_tf.post_training.constants import Constants
from repq_tf.post_training.equalization import Equalization, describe
from repq_tf.post_training.features import Features, measure_features
from repq_tf.post_training.network import Network
from repq_tf.post_training.scales import find_scales, form_groups, lower_bounds
from repq_tf.quantization.operators import activation_name
from repq_tf.quantization.quantize import check_float

_RELU6 = ("skip", "replace")
# Without images: how many random ones say what features are.
_RANDOM_IMAGES = 64


def equalize(
    model: keras.Model,
    calibration_data: Any = None,
    rounds: int | None = 3,
    threshold: float = 1e-4,
    relu6: str = "skip",
    absorb_bias: bool = False,
    calibration_images: int | None = 512,
    verbose: bool = True,
) -> Equalization:
    """Returns a copy of a float model whose weights have equal ranges channel by channel.

    Cross-layer equalization (arXiv 1906.04721, section 4.1): features are divided by a positive
    number s of each channel; the weights that make them are divided, and those that read
    them multiplied. With the largest weights r1 and r2 of a channel on both sides,

        s = sqrt(r1 / r2),  so that both become sqrt(r1 r2),

    layer after layer. A grid for a whole tensor, which one large channel
    would spoil for all others, then fits all channels; so it is for weights quantized with
    `per_channel=False`. The given model is left as it is.

    - Between the two stand ReLU, LeakyReLU, PReLU, poolings, upsampling and what only moves
      numbers. A stream of residual sums has one scale for all layers that make and read it;
      each part of a concatenation has its own. Outputs of the model and layers that cannot pass
      a scale on keep their channels as they are; the report names them.
    - Constant channels are taken out first: where no zeros are beside the reader's input, its
      bias takes what it makes of the constant.
    - Features are bounded by data: a scale never makes a channel larger than the largest of its
      tensor was. Without a bound, a channel of tiny weights and a large bias would be enlarged
      a million times, and with it the grid of the features.
    - Blocks are scaled branch by branch, in their outer weights and batch norms; they compute
      the same in inference and in training (but for what a batch norm's epsilon is beside
      another variance), so that they can be trained afterwards.

    Args:
        model: a Functional or Sequential Keras 3 model of our blocks and stock layers, merged
            or not.
        calibration_data: images, as for `repq_tf.quantize`; None for random ones, which tell
            less of what features are.
        rounds: how often the layers are gone through; None until no scale moves by a
            thousandth. Ranges that are quite equal are not better: of MobileOne-S0, quantized
            per tensor, the logits' signal-to-noise ratio is 6.7 dB without, 13.9 after 3
            rounds and 12.4 after 100.
        threshold: channels whose equal range would be below this part of the largest are left
            as they are.
        relu6: "skip" leaves channels that a ReLU6 clips as they are; "replace" makes a ReLU
            of each that clips nothing on the images.
        absorb_bias: whether what a channel never falls below on the images moves into the
            biases behind it, where these are exact: of merged models, without zeros beside the
            reader's input (arXiv 1906.04721, section 4.1.3).
        calibration_images: how many images to read at most; None reads all.
        verbose: whether to print what was scaled, what not, and why.

    Returns:
        An `Equalization`: its `model` is an uncompiled Functional `keras.Model` with the same
        names, inputs and outputs; printed, it is the table.

    Raises:
        ValueError: an argument is bad, the model is quantized already, or no channel of it can
            be scaled.

    Example:
        >>> equal = repq_tf.equalize(repq_tf.merge(model), images)
        >>> qat = repq_tf.quantize(equal.model, per_channel=False, calibration_data=images)
    """
    if rounds is not None:
        positive(rounds, "rounds")
    number(threshold, "threshold", above=0, most=1)
    if relu6 not in _RELU6:
        raise ValueError(f"relu6 must be one of {_RELU6}. Received: {relu6!r}")
    for argument, given in (("absorb_bias", absorb_bias), ("verbose", verbose)):
        boolean(given, argument)
    measured = calibration_data is not None
    if not measured and (absorb_bias or relu6 == "replace"):
        argument = "absorb_bias=True" if absorb_bias else 'relu6="replace"'
        raise ValueError(f"calibration_data must be given with {argument}. Received: None")
    graph = read_graph(model)
    check_float(graph)
    if not measured:
        calibration_data = _random_images(model)
    images, _ = store_images(calibration_data, model, fitting(graph), calibration_images)
    if measured:
        warn_of_other_range(graph, images[0], "calibration_data")
    found = equalize_on(images, model, rounds, threshold, relu6, absorb_bias, verbose)
    if verbose and not measured:
        print("features are bounded by those of random images; give calibration_data")
    return found


def equalize_on(
    images: Images,
    model: keras.Model,
    rounds: int | None = 3,
    threshold: float = 1e-4,
    relu6: str = "skip",
    absorb_bias: bool = False,
    verbose: bool = True,
) -> Equalization:
    """`equalize` on images that were read, with arguments that are checked.

    Args:
        images: from `store_images`.
        model: as in `equalize`.
        rounds: likewise.
        threshold: likewise.
        relu6: likewise.
        absorb_bias: likewise.
        verbose: likewise.

    Raises:
        ValueError: no channel of the model can be scaled.
    """
    result = rebuild(
        read_graph(model), functools.partial(copy_call, copies={}), name=model.name
    )
    graph = read_graph(result)
    features = measure_features(graph, images, verbose)
    unclipped = _replace_relu6(graph, features) if relu6 == "replace" else set()
    network = Network(graph, features, unclipped)
    constants = Constants(network, features)
    folded = constants.fold()
    groups = form_groups(network, threshold)
    if not any(len(group.alive) for group in groups):
        reasons = "; ".join(dict.fromkeys(network.streams.reasons.values()))
        raise ValueError(f"model {model.name!r}: no channel can be scaled. {reasons}")
    bounds = lower_bounds(network, features)
    scales, count, moved = find_scales(groups, bounds, rounds)
    factors = np.exp(scales[network.streams.roots])
    network.streams.scale(factors)
    absorbed = constants.absorb(factors) if absorb_bias else {}
    rows = describe(network, groups, scales, bounds, folded, absorbed)
    found = Equalization(result, rows, count, moved, _difference(model, result, images))
    if verbose:
        print(found)
    return found


def _random_images(model: keras.Model) -> Any:
    shape = model.input_shape[1:] if isinstance(model.input_shape, tuple) else (None,)
    if None in shape:
        raise ValueError(
            f"calibration_data must be given for model {model.name!r}, of whose input "
            f"{model.input_shape} no random images can be made. Received: None"
        )
    return np.random.default_rng(0).normal(size=(_RANDOM_IMAGES, *shape)).astype("float32")


def _replace_relu6(graph: Graph, features: dict[Tensor, Features]) -> set[str]:
    """Makes a ReLU of each ReLU6 that never clips; returns the names of their nodes."""
    nodes: dict[int, list] = {}
    for node in graph.nodes.values():
        layer = node.layer
        known = isinstance(layer, ReparamConv | keras.layers.ReLU)
        if (known or hasattr(layer, "activation")) and activation_name(layer) == "relu6":
            nodes.setdefault(id(layer), []).append(node)
    unclipped = set()
    for calls in nodes.values():
        if all(features[Tensor(node.name)].highest.max() < 6 for node in calls):
            layer = calls[0].layer
            if isinstance(layer, keras.layers.ReLU):
                layer.max_value = None
            else:
                layer.activation = keras.activations.get("relu")
            unclipped |= {node.name for node in calls}
    return unclipped


def _difference(model: keras.Model, result: keras.Model, images: Images) -> float:
    """The largest difference of their outputs on a batch, as a part of the largest value."""
    found = 0.0
    before, after = (leaves(run_batch(read_graph(item), images[0])) for item in (model, result))
    for one, other in zip(before, after, strict=True):
        one, other = (np.asarray(ops.convert_to_numpy(y), np.float64) for y in (one, other))
        found = max(found, np.abs(one - other).max() / max(np.abs(one).max(), 1e-30))
    return float(found)
