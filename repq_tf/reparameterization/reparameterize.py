"""`reparameterize`: the convolutions of a trained network become blocks; its function stays."""

from typing import Any

import numpy as np

from repq_tf.arguments import boolean, matching
from repq_tf.branches import NumpyReading
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.images import store_images
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, Node, copy_call, read_graph, rebuild
from repq_tf.keras_api import Layer, Shape, keras
from repq_tf.kernels import AffineKernel
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import CONVOLUTIONS, StockConvolution, stock_options
from repq_tf.reparameterization.fit import Fit, fit_block
from repq_tf.reparameterization.moments import measure_moments
from repq_tf.reparameterization.patterns import Settings, read_settings
from repq_tf.reparameterization.sources import Sources, target
from repq_tf.text import columns

# The largest error of a filter's weights, as a part of its largest weight.
_TOLERANCE = 1e-4


def reparameterize(
    model: keras.Model,
    settings: str | type[ReparamConv] | dict[str, Any],
    calibration_data: Any = None,
    calibration_images: int | None = 512,
    verbose: bool = True,
) -> keras.Model:
    """Returns a copy of a model whose convolutions are re-parameterized blocks.

    Conv2D and DepthwiseConv2D layers, each with the BatchNormalization right behind it,
    become blocks of the same name that compute the same: one branch takes the layer's
    weights, the others start at zero (of a batch norm's gamma, a scale or a kernel), and an
    identity is subtracted. All other layers are copied with their weights; those of nested
    models stand in the new model itself. The given model is left as it is.

    The function is kept in inference, within rounding. It is kept in training too where
    the moments in the main branch are known, from the layer's own batch norm. Where they
    are not (a convolution without one; an identity that had to be subtracted)
    `calibration_data` measures them; the table names these layers.

    Args:
        model: a Functional or Sequential Keras 3 model.
        settings: the name of a pattern (`repq_tf.reparameterization.PATTERNS`), a subclass
            of `ReparamConv`, or a dict with

            - `pattern`: one of these;
            - `layers`: a shell-style name pattern or several; default all convolutions;
            - `options`: options of the block, such as `{"branches": 4}`;
            - `min_kernel_size`: layers with a smaller kernel are left; default 2, or 1 for
              patterns that have a 1x1 form;
            - `initialize`: `initialize(block, convolution, batch_norm)` sets the weights of a
              built block instead, given an `AffineKernel` and the BatchNormalization or
              None; for blocks no branch of which has a kernel of full size.
        calibration_data: images, as for `repq_tf.quantize`.
        calibration_images: how many of them to read at most; None reads all.
        verbose: whether to print what became of each convolution.

    Returns:
        An uncompiled Functional `keras.Model` with the same inputs and outputs.

    Raises:
        ValueError: an argument is bad, or no layer can be converted.

    Example:
        >>> model = keras.applications.ResNet50()
        >>> new = repq_tf.reparameterize(model, {"pattern": "acnet", "layers": "conv[2-5]_*"})
    """
    chosen = read_settings(settings)
    boolean(verbose, "verbose")
    graph = read_graph(model)
    images = None
    if calibration_data is not None:
        images, _ = store_images(calibration_data, model, fitting(graph), calibration_images)
        warn_of_other_range(graph, images[0], "calibration_data")
    builder = _Builder(graph, chosen, calibrated=images is not None)
    result = rebuild(graph, builder.apply, name=f"{model.name}_reparameterized")
    if not builder.fits:
        found = "; ".join(f"{name}: {reason}" for name, _, _, reason in builder.rows)
        raise ValueError(f"model {model.name!r}: no layer can be converted. {found}")
    if images is not None:
        measure_moments(result, builder.fits, images, verbose)
    if verbose:
        print(columns([("layer", "was", "is", ""), *builder.rows]))
    return result


class _Builder:
    """Makes the layers of the new model while the source graph is walked.

    Attributes:
        fits: the `Fit` of each block, by layer name.
        rows: what became of each convolution: name, what it was, what it is, why.
    """

    def __init__(self, graph: Graph, settings: Settings, calibrated: bool) -> None:
        self.settings = settings
        self.calibrated = calibrated
        self.sources = Sources(graph)
        names = [n.name for n in graph.nodes.values() if isinstance(n.layer, CONVOLUTIONS)]
        if not names:
            kinds = " or ".join(kind.__name__ for kind in CONVOLUTIONS)
            raise ValueError(
                f"model {graph.name!r} has no {kinds} to convert; repq_tf.merge(model) makes "
                "them of blocks of repq_tf.layers"
            )
        self.chosen = matching(names, settings.layers, "layers")
        self.copies: dict[int, Layer] = {}
        self._blocks: dict[int, ReparamConv] = {}
        self.fused: set[str] = set()
        self.fits: dict[str, Fit] = {}
        self.rows: list[tuple[str, str, str, str]] = []

    def apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Applies what a source node becomes."""
        if node.name in self.fused:
            return args[0]
        if id(node.layer) in self._blocks:  # called again
            norm = self.sources.batch_norm(node)
            if norm is not None:
                self.fused.add(norm.name)
            return self._blocks[id(node.layer)](args[0])
        if node.name not in self.chosen or id(node.layer) in self.copies:
            return copy_call(node, args, kwargs, self.copies)
        size = "x".join(map(str, node.layer.kernel_size))
        was = f"{type(node.layer).__name__} {size}"
        try:
            block, note = self._block(node, args[0].shape)
        except ValueError as error:
            self.rows.append((node.name, was, "left", str(error)))
            return copy_call(node, args, kwargs, self.copies)
        self.rows.append((node.name, was, type(block).__name__, note))
        self._blocks[id(node.layer)] = block
        return block(args[0])

    def _block(self, node: Node, input_shape: Shape) -> tuple[ReparamConv, str]:
        """The block that a convolution becomes, and a note; raises ValueError if none does."""
        self.sources.check(node)
        layer, norm_node = node.layer, self.sources.batch_norm(node)
        norm = norm_node and norm_node.layer
        if min(layer.kernel_size) < self.settings.min_kernel_size:
            raise ValueError(f"smaller than min_kernel_size={self.settings.min_kernel_size}")
        options = {**stock_options(layer, norm), **self.settings.options}
        block = self.settings.block(name=node.name, trainable=layer.trainable, **options)
        block.build(input_shape)
        wanted = target(StockConvolution(layer), norm)
        if self.settings.initialize is None:
            fit = fit_block(block, wanted)
        else:
            fit = Fit(known=block.expression.walk())
            self.settings.initialize(block, wanted.affine, norm)
        _check_equal(block, wanted.merged().affine)
        self.fits[node.name] = fit
        if norm_node is not None:
            self.fused.add(norm_node.name)
        return block, self._note(fit, norm)

    def _note(self, fit: Fit, norm: Layer | None) -> str:
        if fit.guessed and not self.calibrated:
            return "moments unknown: training needs calibration_data to start from its function"
        if norm is not None and not fit.known and not fit.guessed:
            return "its batch norm is folded: the block has none"
        return ""


def _check_equal(block: ReparamConv, wanted: AffineKernel) -> None:
    """Raises a ValueError if a block's merged kernel is not the wanted one."""
    merged = block.merge(NumpyReading())
    difference = merged + wanted.scale(-1.0)
    largest = np.abs(wanted.kernel).max(axis=(0, 1, 2))
    scale = np.maximum(largest, 1e-3 * largest.max(initial=0))
    bias_scale = np.maximum(np.abs(wanted.bias), scale)
    error = max(
        np.max(np.abs(difference.kernel) / np.where(scale > 0, scale, 1)),
        np.max(np.abs(difference.bias) / np.where(bias_scale > 0, bias_scale, 1)),
    )
    if not error <= _TOLERANCE:
        raise ValueError(f"the block cannot keep the function (relative error {error:.1g})")
