"""`restore_batch_norm`: batch norms behind convolutions of a float network that lack them."""

from typing import Any

import numpy as np

from repq_tf.arguments import boolean, matching, name_patterns
from repq_tf.branches import BatchNorm, NumpyReading
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.images import store_images
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, Node, copy_call, read_graph, rebuild
from repq_tf.keras_api import Layer, Shape, keras
from repq_tf.layers import ConvBlock, ConvBNBlock, DenseBlock, ReparamConv
from repq_tf.layers.freezing import copy_trainable
from repq_tf.layers.stock import CONVOLUTIONS, StockConvolution, assign, stock_options
from repq_tf.quantization.quantize import check_float
from repq_tf.reparameterization.fit import Fit
from repq_tf.reparameterization.moments import measure_moments
from repq_tf.reparameterization.sources import Sources
from repq_tf.text import columns

# A channel whose deviation is this small a part of its mean is a constant, to float32.
_CONSTANT = 1e-6


def restore_batch_norm(
    model: keras.Model,
    data: Any,
    layers: str | list[str] = "*",
    calibration_images: int | None = 512,
    verbose: bool = True,
) -> keras.Model:
    """Returns a copy of a float model that has a batch norm behind each convolution.

    A merged network has none left, and trains the worse for it. Here the output y of each
    convolution is measured, and a batch norm put behind it that starts as the identity:

        gamma = sqrt(V[y] + epsilon),  beta = E[y],  moving statistics (E[y], V[y]),

    so that inference stays, within rounding, and training starts from the same function as far
    as a batch has the moments of the images. A convolution becomes a `ConvBNBlock` of the same
    name, whose batch norm takes over its bias; a block of branches without batch norms is
    trained on its merged kernel, with the batch norm at its root. A channel that is constant
    on the images stays so (gamma 0). Convolutions that have a batch norm and dense layers are
    left, and so is the given model.

    Args:
        model: a Functional or Sequential Keras 3 model of our blocks and stock layers; after
            `equalize`, if that is wanted too.
        data: images, as for `repq_tf.quantize`: a few hundred training images.
        layers: a shell-style pattern of names, or several, of the convolutions.
        calibration_images: how many images to read at most; None reads all.
        verbose: whether to print what became of each convolution.

    Returns:
        An uncompiled Functional `keras.Model` with the same names, inputs and outputs.

    Raises:
        ValueError: an argument is bad, the model is quantized already, or no convolution can
            be given a batch norm.

    Example:
        >>> model = repq_tf.restore_batch_norm(repq_tf.merge(model), images)
        >>> qat = repq_tf.quantize(model, calibration_data=images)
    """
    patterns = name_patterns(layers, "layers")
    boolean(verbose, "verbose")
    graph = read_graph(model)
    check_float(graph)
    builder = _Builder(graph, matching(_convolutions(graph), patterns, "layers"))
    if not builder.chosen:
        found = "; ".join(f"{name}: {why}" for name, why in builder.left.items())
        raise ValueError(f"model {model.name!r}: no batch norm can be restored. {found}")
    images, _ = store_images(data, model, fitting(graph), calibration_images)
    warn_of_other_range(graph, images[0], "data")
    result = rebuild(graph, builder.apply, name=model.name)
    measure_moments(result, {name: Fit() for name in builder.chosen}, images, verbose)
    constant = {name: _silence(result.get_layer(name).root) for name in builder.chosen}
    if verbose:
        notes = {name: f"{n} constant channels" if n else "" for name, n in constant.items()}
        rows = [(name, "restored", note) for name, note in notes.items()]
        rows += [(name, "left", why) for name, why in builder.left.items()]
        print(columns([("layer", "batch norm", ""), *rows]))
    return result


class _Builder:
    """Makes the layers of the new model while the source graph is walked.

    Attributes:
        chosen: the names of the convolutions that are given a batch norm.
        left: of those that were meant and are not, `{name: why}`.
    """

    def __init__(self, graph: Graph, meant: set[str]) -> None:
        self._sources = Sources(graph)
        self._copies: dict[int, Layer] = {}
        reasons = {n: self._reason(node) for n, node in graph.nodes.items() if n in meant}
        self.chosen = [name for name, why in reasons.items() if not why]
        self.left = {name: why for name, why in reasons.items() if why}

    def _reason(self, node: Node) -> str:
        """Why a convolution is given no batch norm; "" if it is."""
        try:
            if self._sources.calls[id(node.layer)] > 1:
                return "called more than once"
            if isinstance(node.layer, ReparamConv):
                has = bool(node.layer.merged_batch_norms) or node.layer.root is not None
            else:
                self._sources.check(node)
                has = self._sources.batch_norm(node) is not None
        except ValueError as error:
            return str(error)
        return "it has one" if has else ""

    def apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Applies what a source node becomes."""
        if node.name not in self.chosen:
            return copy_call(node, args, kwargs, self._copies)
        return _rooted(node, args[0].shape)(args[0])


def _convolutions(graph: Graph) -> list[str]:
    return [
        node.name
        for node in graph.nodes.values()
        if isinstance(node.layer, (*CONVOLUTIONS, ReparamConv))
        and not isinstance(node.layer, DenseBlock)
    ]


def _rooted(node: Node, input_shape: Shape) -> ReparamConv:
    """The block of a convolution, with a batch norm at its root that does nothing yet."""
    layer = node.layer
    if isinstance(layer, ReparamConv) and type(layer) is not ConvBlock:
        config = {**layer.get_config(), "merged": True, "restore_batch_norm": True}
        block = type(layer).from_config({**config, "name": node.name})
        block.build(input_shape)
        copy_trainable(layer, block)
        assign(block.expression.weights, layer.expression.weights)
        _pass_through(block.root, 0.0)
        return block
    if isinstance(layer, ConvBlock):
        block = ConvBNBlock.from_config(
            {**layer.get_config(), "name": node.name, "use_bias": False}
        )
        affine = layer.merge(NumpyReading())
    else:
        block = ConvBNBlock(name=node.name, trainable=layer.trainable, **stock_options(layer))
        affine = StockConvolution(layer).merge()
    block.build(input_shape)
    block.inner.kernel.assign(affine.kernel)
    _pass_through(block.root, affine.bias)
    return block


def _pass_through(root: BatchNorm, bias: Any) -> None:
    """Makes a batch norm add a bias and do nothing else, in inference."""
    ones = np.ones(root.gamma.shape, "float32")
    root.keep(ones, bias * ones)


def _silence(root: BatchNorm) -> int:
    """Makes gamma 0 where what a batch norm has measured is constant; returns of how many."""
    mean, variance = NumpyReading().moving(root.statistics)
    constant = variance <= (_CONSTANT * mean) ** 2
    root.gamma.assign(np.where(constant, 0.0, NumpyReading().value(root.gamma)))
    return int(constant.sum())
