"""Initial values of a quantized model from images: statistics and step sizes.

Layer by layer, on the features as the quantized layers before make them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repq_tf.branches import BatchNorm
from repq_tf.calibration.batch_norm import (
    KeepingReading,
    Readings,
    match_moments,
    neutralise_dead_channels,
    quantized_kernel,
    set_moments,
)
from repq_tf.calibration.batches import images_in
from repq_tf.calibration.execution import Calls, fitting, run_batch, run_layers
from repq_tf.calibration.expected import ExpectedFeatures
from repq_tf.calibration.float_pass import FloatPass
from repq_tf.calibration.images import Images, read_images
from repq_tf.calibration.moments import Moments, average_moments
from repq_tf.calibration.prepared import MergedBlock, Run, prepare_float
from repq_tf.calibration.ranges import TensorSteps, set_kernel_step
from repq_tf.calibration.reconstruction import KernelFit, Rounding
from repq_tf.calibration.samples import Sampler
from repq_tf.calibration.thinning import thin_reading
from repq_tf.graphs import Graph, Node, read_graph
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.kernels import AffineKernel
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.progress import Progress
from repq_tf.windows import convolve

CORRECTIONS = ("moments", "bias", "analytic", None)


def check_correction(correct: Any) -> str | None:
    """Returns `correct`, or raises ValueError listing the corrections there are."""
    if not isinstance(correct, str | None) or correct not in CORRECTIONS:
        raise ValueError(f"correct must be one of {CORRECTIONS}. Received: {correct!r}")
    return correct


def calibrate(
    model: keras.Model,
    graph: Graph,
    builder: Any,
    images: Images,
    correct: str | None = "moments",
    verbose: bool = True,
    alone: bool = False,
    rounding: Rounding | None = None,
) -> dict[str, MergedBlock]:
    """Calibrates a quantized model, layer by layer.

    Args:
        model: the quantized model.
        graph: the float model's graph.
        builder: the `Builder` that made the quantized model, with the float one's weights.
        images: their `Stored` batches.
        correct: what is corrected of what quantization does to the features: "moments", their
            means and deviations; "bias", their means alone; "analytic", what the layer's own
            kernel does to the mean, by `ExpectedFeatures`; None.
        verbose: whether to show progress bars.
        alone: whether each layer is calibrated as if it alone was quantized: on the features
            of the float network.
        rounding: what chooses the levels of each kernel, which must be plain ones; None for
            the nearest ones.

    Returns:
        What each block was in floating point, by its name.
    """
    real = FloatPass(graph, builder, images.images, keep_outputs=rounding is not None)
    progress = Progress("float features", len(images), "batch", verbose)
    for k in range(len(images)):
        real.add(images[k])
        progress.advance()
    real.check()
    quantized = read_graph(model)
    expected = ExpectedFeatures(real) if correct == "analytic" else None
    steps = TensorSteps(quantized, builder.ranges, real.samples, images.images, correct)

    def choose(block: ReparamConv, calls: Sequence[Calls]) -> Callable[[], None] | None:
        """A function that rounds a block's kernel, or None."""
        if rounding is None or block.weight_quantizer is None:
            return None
        merged, outputs = real.merged[block.name], real.take_outputs(block)
        if not block.weight_quantizer.is_uniform:
            return None

        def choose_levels() -> None:
            readings = Readings(block, calls)
            corrected = correct is not None
            fit = KernelFit(block, merged, readings, outputs, images.images, corrected)
            fit.write(rounding(fit))

        return choose_levels

    def visit(node: Node, calls: Sequence[Calls]) -> None:
        layer = node.layer
        if isinstance(layer, ReparamConv):
            values = calibrate_block(
                layer,
                calls,
                images.images * len(calls),
                real.moments[layer.name],
                layer.name in builder.fresh_roots,
                layer.name in builder.true_moments,
                builder.ranges[layer.name],
                correct,
                choose(layer, calls),
                None if expected is None else expected.mean_before(node, len(calls)),
            )
            # Values of all calls together say nothing of the grid of one.
            steps.drawn[node.name] = None if alone or len(calls) > 1 else values
        elif isinstance(layer, Quantize):
            steps.set(node, calls[0])
        if expected is not None:
            expected.add(node)

    def make_float(node: Node) -> Run:
        return prepare_float(node.layer, real.merged.get(node.layer.name))

    progress = Progress("quantized layers", len(quantized.nodes) - 1, "layer", verbose)
    run_layers(quantized, images, visit, progress, make_float if alone else None)
    return real.merged


def calibrate_block(
    block: ReparamConv,
    calls: Sequence[Calls],
    images: int,
    real: Moments,
    fresh_root: bool,
    true_moments: bool,
    rule: str,
    correct: str | None,
    choose_levels: Callable[[], None] | None = None,
    expected: Array | None = None,
) -> Array | None:
    """Sets a quantized block's weight steps and corrects what quantization shifts and scales.

    The batch norm at its root takes the correction; where there is none, a bias takes the
    shift alone. The moments of the batch norms inside stay, so that the kernel is the one
    that the float network has; but for constant channels, and `estimate`, which has to know
    them otherwise.

    Args:
        block: a quantized `ReparamConv` with the weights of the float one.
        calls: its `Calls`, for each place where the model calls it.
        images: the number of images in all of them.
        real: `Moments` of the float convolution's output.
        fresh_root: whether its restored batch norm is new and starts as the identity.
        true_moments: whether the float block was trained with exact moments.
        rule: the range rule of its weights.
        correct: what is corrected, as in `calibrate`.
        choose_levels: rounds the kernel, whose steps are set; None for the nearest levels.
        expected: the mean of each channel of its input, from which the correction of the mean
            follows; None for what is measured.

    Returns:
        Values of its output, at random places; None if it runs its branches.
    """
    readings = Readings(block, calls)
    for node in block.merged_batch_norms:
        neutralise_dead_channels(node)
    # A block that runs its branches normalizes them exactly, whatever its mode.
    if block.uses_merged_kernel and block.bn_statistics == "estimate" and true_moments:
        affine = block.inner.merge(KeepingReading(readings))
    else:
        affine = block.inner.merge()
    if block.weight_quantizer is not None:
        set_kernel_step(block.weight_quantizer, affine, readings, rule, images, correct)
    kernel = affine.kernel
    if choose_levels is not None:
        choose_levels()
        affine = block.inner.merge()
    unrounded, quantized, sampler = _measured(block, kernel, affine, readings, images)
    if expected is not None:
        change = quantized_kernel(block, affine).kernel - kernel
        quantized.mean = real.mean + _mean_of(change, expected, affine.groups)
    unused = block.root is block.restored and not block.uses_merged_kernel
    if block.root is None or unused:
        if correct is not None:
            block.inner.shift(real.mean - quantized.mean)
    else:
        if fresh_root:
            block.root.gamma.assign(np.sqrt(real.variance + block.root.epsilon))
            block.root.beta.assign(real.mean)
            set_moments(block.root.statistics, real)
        elif isinstance(block.expression, BatchNorm):
            neutralise_dead_channels(block.root)
        if correct is not None:
            # Levels that were fitted keep deviations by themselves.
            fitted = correct != "moments" or choose_levels is not None
            before = quantized if fitted else unrounded
            match_moments(block.root, real, before, quantized)
    if not block.uses_merged_kernel:
        return None
    merged = MergedBlock(block, block.root)
    return ops.convert_to_numpy(merged.finish_values(*sampler.drawn()))


def _mean_of(kernel: Tensor, mean: Array, groups: int) -> Array:
    """The mean of what a kernel makes of features with a mean, borders apart."""
    taps = np.asarray(ops.convert_to_numpy(kernel), np.float64).sum(axis=(0, 1))
    taps = taps.reshape(len(taps), groups, -1)
    return np.einsum("igo,gi->go", taps, mean.reshape(groups, -1)).ravel()


def _measured(
    block: ReparamConv, kernel: Tensor, affine: AffineKernel, readings: Readings, images: int
) -> tuple[Moments, Moments, Sampler]:
    """Moments behind a kernel and a quantized one, and a `Sampler` of the latter's values.

    Those are of the convolution without its bias.
    """
    kernels = kernel, quantized_kernel(block, affine).kernel
    sampler, calls = Sampler(block.name, images), []
    for readings_of_call in readings.calls:
        found = Moments(), Moments()
        for reading in readings_of_call:
            r = thin_reading(reading, affine.size, images, phases=block.upsampling)
            for kernel, moments in zip(kernels, found, strict=True):
                y = convolve(r.x, kernel, affine.groups, r.strides, r.window)
                moments.add_features(y, affine.bias)
            sampler.add(y)
        calls.append(found)
    unrounded, quantized = map(average_moments, zip(*calls, strict=True))
    return unrounded, quantized, sampler


def clip_rates(
    model: keras.Model, data: Any, calibration_images: int | None = 512
) -> dict[str, float]:
    """The share of values that each quantizer clips, on the given images.

    Args:
        model: a quantized model.
        data: images, as for `repq_tf.quantize`.
        calibration_images: how many images to read at most; None reads all.

    Returns:
        `{"LAYER/weight": rate, "LAYER/activation": rate}`.
    """
    graph = read_graph(model)
    found: dict[str, list[tuple[int, float]]] = {}

    def visit(node: Node, args: tuple[Any, ...]) -> None:
        if isinstance(node.layer, Quantize):
            rate = node.layer.activation_quantizer.clip_rate(node.layer.values(*args))
            name = f"{node.layer.name}/activation"
            found.setdefault(name, []).append((images_in(batch), float(rate)))

    for batch in read_images(data, model, fitting(graph), calibration_images):
        run_batch(graph, batch, visit)
    rates = {
        name: float(np.average([r for _, r in pairs], weights=[count for count, _ in pairs]))
        for name, pairs in found.items()
    }
    for node in graph.nodes.values():
        layer = node.layer
        if isinstance(layer, ReparamConv) and layer.weight_quantizer is not None:
            kernel = layer.inner.merge().kernel
            rates[f"{layer.name}/weight"] = float(layer.weight_quantizer.clip_rate(kernel))
    return rates
