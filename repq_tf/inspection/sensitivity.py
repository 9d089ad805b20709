"""`sensitivity`: what each quantizer alone does to the outputs of a float network."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.arguments import boolean, check_bits, number
from repq_tf.calibration.batches import images_of
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.images import Images, store_images
from repq_tf.calibration.prepared import Run, prepare, prepare_float, prepare_rounded
from repq_tf.calibration.steps import calibrate
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, read_graph
from repq_tf.inspection.costs import linear_maps
from repq_tf.inspection.noise import Ratio
from repq_tf.inspection.sensitivity_table import (
    FEATURES,
    SQNR,
    WEIGHTS,
    LayerCost,
    Sensitivity,
    SensitivityRow,
)
from repq_tf.inspection.shapes import output_shapes
from repq_tf.inspection.tails import Tails, tail_of
from repq_tf.keras_api import Array, Tensor, keras, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.progress import Progress
from repq_tf.quantization.grids import known_name, quantized_node
from repq_tf.quantization.placement import place
from repq_tf.quantization.quantize import default_bits, read_float, signed_inputs, uncalibrated

# `metric(float_outputs, outputs)`: how much worse the latter are.
Metric: TypeAlias = Callable[[Any, Any], float]
# All activations of a batch are kept, where other runs keep a few.
_SHARE = 2


def sensitivity(
    model: keras.Model,
    data: Any,
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    metric: str | Metric = SQNR,
    calibration_images: int | None = 32,
    verbose: bool = True,
) -> Sensitivity:
    """Measures what each quantizer alone does to the outputs of a float network.

    For each layer with weights and each number of bits, its weights are quantized as
    `repq_tf.quantize` would if it were the only layer, the correction of its batch norm or bias
    included; and so is each tensor that has a grid of its own. All others stay in floating
    point. Only the layers behind the quantizer are run again.

    Args:
        model: a Functional or Sequential float Keras model, with branches or merged.
        data: images, as for `repq_tf.quantize`. They set steps too.
        bits: the numbers of bits to try, each 2 to 8.
        metric: "sqnr", the noise power at the outputs as a part of the signal's (the mean over
            outputs); or a function `metric(float_outputs, outputs)` of arrays
            `(images, ...)` (lists of them for several outputs) that returns a finite number,
            the larger, the worse: the part of the images whose class changes, say. Memory
            then holds the outputs for all quantizers.
        calibration_images: how many images to read at most; None reads all.
        verbose: whether to show progress bars after two seconds.

    Returns:
        A `Sensitivity`: print it, `plot("bits.png")`, or give it to `repq_tf.allocate_bits`.

    Raises:
        ValueError: an argument is bad, or a layer cannot be quantized (it is named).

    Example:
        >>> table = repq_tf.sensitivity(model, images, bits=(2, 4, 8))
        >>> table.rows[0].sqnr
        21.3
        >>> classes = lambda x, y: np.mean(x.argmax(-1) != y.argmax(-1))
        >>> repq_tf.sensitivity(model, images, metric=classes)
    """
    bits = _check_bits(bits)
    if metric != SQNR and not callable(metric):
        raise ValueError(f"metric must be {SQNR!r} or a function. Received: {metric!r}")
    boolean(verbose, "verbose")
    graph = read_float(model)
    wide = _wide_inputs(graph)
    if not wide:
        raise ValueError(f"model {model.name!r} must have layers with weights")
    fits = fitting(graph)
    images, lowest = store_images(
        data, model, lambda shape: max(1, fits(shape) // _SHARE), calibration_images, "data"
    )
    warn_of_other_range(graph, images[0], "data")
    network = _Network(graph, images, bits, signed_inputs(graph, lowest), verbose)
    trials = network.trials
    outcomes = [_Function(metric) if callable(metric) else _Power() for _ in trials]
    progress = Progress("sensitivity", len(images) * len(trials), "trial", verbose)
    for k in range(len(images)):
        tails = Tails(network.graph, network.floats, images[k])
        real = _arrays(tails.outputs({}, ()))
        for trial, outcome in zip(trials, outcomes, strict=True):
            outcome.add(real, _arrays(tails.outputs(trial.runs, trial.tail)))
            progress.advance()
    rows = tuple(
        trial.row(number(outcome.noise(), f"the noise of metric {metric!r}"))
        for trial, outcome in zip(trials, outcomes, strict=True)
    )
    label = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    sizes = {name: values.shape[1:] for name, values in images_of(images[0]).items()}
    costs = network.costs(wide, sizes.get(""))
    return Sensitivity(model.name, images.images, label, rows, costs)


def _check_bits(bits: Any) -> list[int]:
    if not isinstance(bits, Iterable) or isinstance(bits, str):
        bits = [bits]
    found = sorted({check_bits(b) for b in bits})
    if not found:
        raise ValueError("bits must be numbers from 2 to 8. Received: none")
    return found


def _wide_inputs(graph: Graph) -> dict[str, bool]:
    """Whether the input of each convolution has 8 bits where others have fewer."""
    inputs = {node.name: True for node in graph.nodes.values() if node.is_input}
    sites = place(graph, default_bits(2), (), inputs).sites
    return {
        site.name: sites[site.inputs[0]].bits.activation_bits != 2
        for site in sites.values()
        if site.kind == "convolution"
    }


@dataclasses.dataclass(frozen=True)
class _Trial:
    """One quantizer, alone in a network that is otherwise in floating point.

    Attributes:
        name: the layer.
        kind: `WEIGHTS` or `FEATURES`.
        bits: of the quantizer.
        runs: the nodes that it stands in, by name, with it on.
        tail: the names of these nodes and of all behind them.
    """

    name: str
    kind: str
    bits: int
    runs: dict[str, Run]
    tail: list[str]

    def row(self, noise: float) -> SensitivityRow:
        return SensitivityRow(self.name, self.kind, self.bits, float(noise))


class _Network:
    """A float network in the form of a quantized one, and its quantizers.

    Args:
        graph: the float model's graph.
        images: their `Stored` batches.
        bits: the numbers of bits to try.
        signed: for the name of each input, whether it has negative values.
        verbose: whether to show progress bars.

    Attributes:
        graph: of the quantized model.
        floats: what its nodes compute with quantizers off, by name.
        trials: a `_Trial` for each quantizer and number of bits, in the model's order.
    """

    def __init__(
        self,
        graph: Graph,
        images: Images,
        bits: Sequence[int],
        signed: Mapping[str, bool],
        verbose: bool,
    ) -> None:
        self.trials: list[_Trial] = []
        for b in bits:
            rules = [("*", {"weight_bits": b, "activation_bits": b})]
            model, builder = uncalibrated(graph, default_bits(b), rules, signed, "restored")
            merged = calibrate(model, graph, builder, images, verbose=verbose, alone=True)
            self.graph = read_graph(model)
            self.trials += _trials(self.graph, b)
        self.floats = {
            node.name: prepare_float(node.layer, merged.get(node.name))
            for node in self.graph.nodes.values()
        }
        places = {name: index for index, name in enumerate(self.graph.nodes)}
        self.trials.sort(key=lambda trial: (places[trial.tail[0]], trial.bits))

    def costs(
        self, wide: Mapping[str, bool], size: Sequence[int] | None
    ) -> dict[str, LayerCost]:
        """What the kernels of its blocks are made of.

        Args:
            wide: of `_wide_inputs`.
            size: the shape of an image; None for a model with several inputs.
        """
        shapes = output_shapes(self.graph, size)
        found: dict[str, LayerCost] = {}
        first: dict[str, str] = {}  # of the calls of each block
        for node in self.graph.nodes.values():
            if not isinstance(node.layer, ReparamConv):
                continue
            name, channels = known_name(self.graph, node), shapes[node.inputs[0].node][-1]
            name = first.setdefault(node.layer.name, name)
            for linear in linear_maps(node.layer, channels, shapes[node.name]) or ():
                macs = linear.macs + (found[name].macs if name in found else 0)
                found[name] = LayerCost(linear.kernel, linear.bias, macs, wide[name])
        return found


def _trials(graph: Graph, bits: int) -> Iterator[_Trial]:
    """Those of the quantizers that have a number of bits."""
    seen = set()
    for node in graph.nodes.values():
        layer = node.layer
        calls = [other.name for other in graph.nodes.values() if other.layer is layer]
        if isinstance(layer, ReparamConv) and layer.name not in seen:
            seen.add(layer.name)
            name, kind = known_name(graph, node), WEIGHTS
            runs = dict.fromkeys(calls, prepare(layer))
        elif isinstance(layer, Quantize) and layer.name not in seen:
            seen.add(layer.name)
            if layer.bits != bits or layer.fixed_step is not None:
                continue
            name, kind = known_name(graph, quantized_node(graph, node)), FEATURES
            runs = dict.fromkeys(calls, prepare_rounded(layer))
        else:
            continue
        yield _Trial(name, kind, bits, runs, tail_of(graph, runs))


def _arrays(outputs: Sequence[Tensor]) -> list[Array]:
    return [ops.convert_to_numpy(output) for output in outputs]


class _Power:
    """Noise power as a part of the signal's, the mean over outputs."""

    def __init__(self) -> None:
        self._ratios: list[Ratio] = []

    def add(self, real: list[Array], outputs: list[Array]) -> None:
        self._ratios = self._ratios or [Ratio() for _ in real]
        for ratio, one, two in zip(self._ratios, real, outputs, strict=True):
            ratio.add(one, two)

    def noise(self) -> float:
        if not all(ratio.signal for ratio in self._ratios):
            raise ValueError("data: an output of the float model is 0 on all images")
        return float(np.mean([ratio.noise / ratio.signal for ratio in self._ratios]))


class _Function:
    """What a function of all outputs returns."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._real: list[list[Array]] = []
        self._outputs: list[list[Array]] = []

    def add(self, real: list[Array], outputs: list[Array]) -> None:
        self._real.append(real)
        self._outputs.append(outputs)

    def noise(self) -> Any:
        return self._metric(_all(self._real), _all(self._outputs))


def _all(batches: list[list[Array]]) -> Any:
    """The arrays of all images; of a model with one output, that one."""
    if len({output.shape[1:] for batch in batches for output in batch}) > len(batches[0]):
        raise ValueError(f"metric must be {SQNR!r} where images have several sizes")
    outputs = [np.concatenate(found) for found in zip(*batches, strict=True)]
    return outputs[0] if len(outputs) == 1 else outputs
