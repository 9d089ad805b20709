"""`analyze`: what the weights and features of a model are like, and what quantization costs."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from repq_tf.arguments import boolean
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.float_pass import float_blocks
from repq_tf.calibration.images import Images, Lowest, store_images
from repq_tf.calibration.prepared import MergedBlock
from repq_tf.calibration.steps import calibrate
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.files import new_file, write_atomically
from repq_tf.graphs import Graph, read_graph, read_native
from repq_tf.inspection.advice import advise
from repq_tf.inspection.analysis_page import as_html, as_text
from repq_tf.inspection.features import FeatureFigures
from repq_tf.inspection.noise import NoiseFigures, measure
from repq_tf.inspection.weights import (
    BranchFigures,
    WeightFigures,
    branch_figures,
    weight_figures,
)
from repq_tf.keras_api import keras
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.quantization.grids import known_name
from repq_tf.quantization.quantize import default_bits, read_float, signed_inputs, uncalibrated

# How many networks run beside each other.
_NETWORKS = 4


@dataclasses.dataclass(frozen=True)
class LayerAnalysis:
    """One layer of an `Analysis`.

    Attributes:
        name: the layer.
        kind: its class.
        weights: `WeightFigures` of its kernel; None without one.
        branches: `BranchFigures` of the branches of a block.
        features: `FeatureFigures` of its output, with what is fused into the layer.
        noise: `NoiseFigures` of its output.
    """

    name: str
    kind: str
    weights: WeightFigures | None
    branches: tuple[BranchFigures, ...]
    features: FeatureFigures
    noise: NoiseFigures

    @property
    def warnings(self) -> tuple[str, ...]:
        """What endangers it under quantization, each with a remedy."""
        return advise(self)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What `analyze` returns; `str(analysis)` are the tables.

    Attributes:
        name: the model.
        bits: that a float model was quantized with; None for one that was quantized before.
        images: on how many images features were measured.
        rows: a `LayerAnalysis` for each layer with a kernel or with an output on a grid of its
            own, in order.
    """

    name: str
    bits: int | None
    images: int
    rows: tuple[LayerAnalysis, ...]

    @property
    def warnings(self) -> list[str]:
        """What endangers which layer under quantization, each with a remedy."""
        return [warning for row in self.rows for warning in row.warnings]

    def as_dict(self) -> dict[str, Any]:
        """The analysis as plain data, which JSON can hold."""
        rows = [
            {**dataclasses.asdict(row), "warnings": list(row.warnings)} for row in self.rows
        ]
        for row in rows:
            row["branches"] = list(row["branches"])
        return {
            "name": self.name,
            "bits": self.bits,
            "images": self.images,
            "rows": rows,
            "warnings": self.warnings,
        }

    def __str__(self) -> str:
        return as_text(self)

    def html(self) -> str:
        """The tables with plots and meanings, as a page that needs no other file."""
        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file, whole or not at all: `html()`, or JSON to a name ending in .json."""
        name = new_file(path)
        json_file = name.endswith(".json")
        text = json.dumps(self.as_dict(), indent=2) if json_file else self.html()
        write_atomically(name, text.encode())


def analyze(
    model: keras.Model,
    data: Any,
    bits: int | None = None,
    reference: keras.Model | None = None,
    calibration_images: int | None = 64,
    verbose: bool = True,
) -> Analysis:
    """Says what the weights and features of a model are like, and what quantization costs.

    For each layer: the distribution of its merged kernel and of each branch that is merged into
    it, that of its output, and the noise of quantization there. For noise, four networks see
    the images: in floating point, with quantized weights, with quantized features, and with
    both; and each quantizer is tried alone on the features of the float one. Rounding is that
    of training, which differs from the file's in the last place.

    Args:
        model: a Functional or Sequential Keras model: float, with branches or merged, of which
            the noise is that of `repq_tf.quantize(model, bits)`, its corrections of batch
            norms and biases included; or quantized, trained or not, which is compared with its
            own function without quantizers.
        data: images, as for `repq_tf.quantize`. They calibrate a float model as well.
        bits: 2 to 8, for a float model; default 8.
        reference: of a quantized model, the float model that it was made of, to be compared
            with in the place of its own function; for models that were not trained after
            `quantize`, whose corrections are right with quantizers alone.
        calibration_images: how many images to read at most; None reads all.
        verbose: whether to show progress bars after two seconds.

    Returns:
        An `Analysis`: print it, or `save("model.html")`.

    Raises:
        ValueError: an argument is bad, a layer cannot be quantized (it is named), or features
            are not finite.

    Example:
        >>> analysis = repq_tf.analyze(model, images, bits=4)
        >>> analysis.warnings[0]
        'identity branch of stage2_block1 has gain 692 at channel 3: ...'
        >>> analysis.save("model.html")
    """
    boolean(verbose, "verbose")
    given = read_native(model)
    if any(isinstance(node.layer, Quantize) for node in given.nodes.values()):
        if bits is not None:
            raise ValueError(
                "bits must be left out for a quantized model, which has its own. Received: "
                f"{bits!r}"
            )
        floats = {} if reference is None else _floats_of(reference, given)
        images, _ = _store(data, model, given, calibration_images)
        return _analysis(given, _weights(given), images, floats, None, verbose)
    if reference is not None:
        raise ValueError(
            f"reference must be left out for a float model. Received: {reference!r}"
        )
    bits = 8 if bits is None else bits
    default, graph = default_bits(bits), read_float(model)
    images, lowest = _store(data, model, graph, calibration_images)
    quantized, builder = uncalibrated(
        graph, default, (), signed_inputs(graph, lowest), "restored"
    )
    layers = read_graph(quantized)
    weights = _weights(layers)  # as they are in the float model
    floats = calibrate(quantized, graph, builder, images, verbose=verbose)
    found = _analysis(layers, weights, images, floats, bits, verbose)
    return dataclasses.replace(found, name=model.name)


_Weights = tuple[WeightFigures | None, tuple[BranchFigures, ...]]


def _weights(graph: Graph) -> dict[str, _Weights]:
    return {
        node.name: (weight_figures(node.layer), branch_figures(node.layer))
        for node in graph.nodes.values()
    }


def _store(
    data: Any, model: keras.Model, graph: Graph, limit: int | None
) -> tuple[Images, Lowest]:
    fits = fitting(graph)
    found = store_images(
        data, model, lambda shape: max(1, fits(shape) // _NETWORKS), limit, name="data"
    )
    warn_of_other_range(graph, found[0][0], "data")
    return found


def _analysis(
    graph: Graph,
    weights: Mapping[str, _Weights],
    images: Images,
    floats: Mapping[str, MergedBlock],
    bits: int | None,
    verbose: bool,
) -> Analysis:
    rows = []
    for place in measure(graph, images, floats, verbose):
        quantizer = place.quantizer
        rows.append(
            LayerAnalysis(
                place.name,
                type(place.node.layer).__name__,
                *weights[place.node.name],
                place.features.figures(None if quantizer is None else quantizer.bits),
                place.noise,
            )
        )
    return Analysis(graph.name, bits, images.images, tuple(rows))


def _floats_of(reference: keras.Model, graph: Graph) -> dict[str, MergedBlock]:
    """The float model's convolutions in the places of a quantized model's blocks."""
    source = read_float(reference)
    quantized, builder = uncalibrated(
        source, default_bits(8), (), dict.fromkeys(source.input_keys, True), "restored"
    )
    blocks, layers = float_blocks(builder), read_graph(quantized)
    found = {known_name(layers, layers.nodes[name]): merged for name, merged in blocks.items()}
    floats: dict[str, MergedBlock] = {}
    for node in graph.nodes.values():
        if not isinstance(node.layer, ReparamConv) or node.layer.name in floats:
            continue
        name = known_name(graph, node)
        shape = tuple(node.layer.inner.merge().kernel.shape)
        if name not in found or tuple(found[name].kernel.shape) != shape:
            raise ValueError(
                "reference must be the float model that the quantized one was made of. "
                f"Received: model {reference.name!r}, without a layer {name!r} of a kernel "
                f"of shape {shape}"
            )
        floats[node.layer.name] = found[name]
    return floats
