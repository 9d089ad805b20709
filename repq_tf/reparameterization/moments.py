"""Statistics of new batch norms, measured on images without a change of the function."""

from collections.abc import Mapping, Sequence
from typing import Self

from repq_tf.branches import BatchNorm
from repq_tf.calibration.batch_norm import (
    CalibrationReading,
    Change,
    Readings,
    quantized_kernel,
    set_moments,
)
from repq_tf.calibration.execution import Calls, run_layers
from repq_tf.calibration.images import Images
from repq_tf.graphs import Node, read_graph
from repq_tf.keras_api import Tensor, keras
from repq_tf.kernels import AffineKernel
from repq_tf.progress import Progress
from repq_tf.reparameterization.fit import Fit


def measure_moments(
    model: keras.Model, fits: Mapping[str, Fit], images: Images, verbose: bool = True
) -> None:
    """Gives the batch norms of fitted blocks the moments of their features.

    The known ones keep what they have. The guessed ones get gamma and beta that keep the
    function, so that a training step starts from it too.

    Args:
        model: the model of the blocks.
        fits: the `Fit` of each block, by layer name.
        images: their `Stored` batches.
        verbose: whether to show a progress bar.
    """

    def visit(node: Node, calls: Sequence[Calls]) -> None:
        if node.layer.name not in fits:
            return
        block, fit = node.layer, fits[node.layer.name]
        readings = Readings(block, calls)
        affine = block.inner.merge(_MeasuringReading(readings, fit))
        if block.root is not None and block.root not in fit.known:
            before = block.root.gain_and_shift()
            (moments,) = readings.moments(quantized_kernel(block, affine))
            set_moments(block.root.statistics, moments)
            block.root.keep(*before)

    graph = read_graph(model)
    progress = Progress("measuring moments", len(graph.nodes), "layer", verbose)
    run_layers(graph, images, visit, progress)


class _MeasuringReading(CalibrationReading):
    """The reading that measures the statistics of all batch norms but the known ones."""

    def __init__(self, readings: Readings, fit: Fit) -> None:
        super().__init__(readings, exact=True)
        self.fit = fit

    def _derive(self, change: Change) -> Self:
        return type(self)(self.readings.changed(change), self.fit)

    def moments(self, batch_norm: BatchNorm, affine: AffineKernel) -> tuple[Tensor, Tensor]:
        """Measures, sets and returns the moving statistics."""
        if batch_norm in self.fit.known:
            return self.moving(batch_norm.statistics)
        before = batch_norm.gain_and_shift()
        super().moments(batch_norm, affine)
        if batch_norm in self.fit.guessed:
            batch_norm.keep(*before)
        return self.moving(batch_norm.statistics)
