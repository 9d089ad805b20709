"""`post_training_quantize`: merged, equalized, quantized, rounded and corrected."""

import dataclasses
from typing import Any

from repq_tf.arguments import boolean, number
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.images import Images, store_images
from repq_tf.calibration.steps import check_correction
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, read_graph
from repq_tf.keras_api import keras
from repq_tf.post_training.equalize import equalize_on
from repq_tf.post_training.ladder import Metric, Settings, climb, rungs_from
from repq_tf.post_training.rounding import ROUNDINGS, find_rounding
from repq_tf.quantization.placement import place
from repq_tf.quantization.quantize import (
    check_float,
    default_bits,
    quantize_graph,
    read_float,
)
from repq_tf.quantization.rules import CheckedRules, LayerBits, Rules, check_rules
from repq_tf.reparameterization import merge

# Fewer images say too little of what a layer reads for its levels to be fitted to them.
_LEAST_IMAGES = 32


def post_training_quantize(
    model: keras.Model,
    bits: int = 8,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    rules: Rules | None = (),
    per_channel: bool = True,
    weight_range: str = "min_error",
    activation_range: str = "output_error",
    rounding: str = "nearest",
    iterations: int = 500,
    equalize: bool | None = None,
    correct: str | None = "moments",
    calibration_data: Any = None,
    calibration_images: int | None = 512,
    input_step: float | None = None,
    output_step: float | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Returns a float model quantized as well as it can be without training.

    The model is merged, equalized where grids of whole tensors ask for it, and quantized as by
    `repq_tf.quantize`, layer by layer, on features as the quantized layers before make them.
    What is more, the levels of each kernel can be chosen by what its layer makes of them:
    with the quantized network's features `x^`, the float network's outputs `y` at the same
    pixels, and kernels `W` of levels times steps,

    - "nearest": the nearest levels;
    - "descent": those of least error `E |y - W x^ - b|^2`, by coordinate descent on the
      covariances of x^ and y; no learning rate, no random number;
    - "adaround" (arXiv 2004.10568): up or down for each weight, trained on the error behind the
      activation;
    - "adaquant" (arXiv 2006.10518): weights, steps and biases trained on that error, straight
      through the rounding.

    Below 8 bits that decides whether there is a network at all. Levels that are fitted are
    kept only where the layer is better on the images than with the nearest ones.

    With `max_drop`, settings are tried from the cheapest on until the metric is at most so much
    below the float model's: the given ones; all ranges by "output_error"; "descent";
    activations of 16 bits, each on top of those before. What a quantized model
    computes in inference is what its file will, so no file is needed to judge it.

    Args:
        model: a Functional or Sequential Keras 3 model of our blocks and stock layers, merged
            or not.
        bits: as in `repq_tf.quantize`.
        weight_bits: likewise.
        activation_bits: likewise.
        rules: likewise.
        per_channel: likewise.
        weight_range: likewise.
        activation_range: likewise; by default what keeps the layers' outputs best, which takes
            longer and pays where no training follows.
        rounding: "nearest", "descent", "adaround" or "adaquant"; others than the nearest
            levels need 32 images, and are good for a few hundred.
        iterations: of "adaround" and "adaquant" for each layer, of 256 pixels each.
        equalize: whether `repq_tf.equalize` goes before. Default: where a kernel's grid is that
            of the whole tensor.
        correct: as in `repq_tf.quantize`.
        calibration_data: likewise.
        calibration_images: likewise.
        input_step: likewise.
        output_step: likewise.
        max_drop: by how much the metric may fall. Where nothing that is tried holds it, the
            best model is returned with a warning.
        metric: a function `metric(model)` that returns a number, the larger, the better: an
            accuracy on images that are not the calibration's.
        verbose: whether to print what was done, and to show progress bars.

    Returns:
        A quantized model, as `repq_tf.quantize` returns it: to be exported, compared with its
        file, or trained. With `max_drop`, its attribute `ladder` is the `Ladder` of what was
        tried; it does not go into a `.keras` file.

    Raises:
        ValueError: an argument is bad, the model is quantized already, or a layer cannot be
            quantized (it is named).

    Warns:
        UserWarning: no settings hold `max_drop`; or features at the first batch norm are of
            another size than those that it was trained on.

    Example:
        >>> quantized = repq_tf.post_training_quantize(
        ...     model, weight_bits=4, rounding="descent", calibration_data=images
        ... )
        >>> repq_tf.export_tflite(quantized, "model.tflite")
        >>> def accuracy(model):
        ...     return np.mean(model.predict(x).argmax(-1) == labels)
        >>> quantized = repq_tf.post_training_quantize(
        ...     model, calibration_data=images, max_drop=0.01, metric=accuracy
        ... )
        >>> print(quantized.ladder)
    """
    default = default_bits(
        bits, weight_bits, activation_bits, per_channel, weight_range, activation_range
    )
    boolean(equalize, "equalize", optional=True)
    check_correction(correct)
    boolean(verbose, "verbose")
    find_rounding(rounding, iterations)
    _check_contract(max_drop, metric)
    checked = check_rules(rules)
    for name, step in (("input_step", input_step), ("output_step", output_step)):
        if step is not None:
            number(step, name, above=0)
    graph = read_graph(model)
    check_float(graph)
    images = store_images(calibration_data, model, fitting(graph), calibration_images)
    warn_of_other_range(graph, images[0][0], "calibration_data")
    _check_images(images[0].images, rounding, max_drop)
    merged = merge(model)
    tensorwise = not per_channel or any(not s.get("per_channel", True) for _, s in checked)
    if tensorwise if equalize is None else equalize:
        merged = _equalized(merged, images[0], bool(equalize), verbose)
    graph = dataclasses.replace(read_float(merged), name=model.name)

    def quantized(settings: Settings, verbose: bool) -> keras.Model:
        return quantize_graph(
            graph,
            images,
            dataclasses.replace(default, **settings.of_layers),
            checked,
            (input_step, output_step),
            correct,
            verbose,
            find_rounding(settings.rounding, iterations),
        )

    first = Settings(weight_range, activation_range, rounding, default.activation_bits)
    if metric is None or max_drop is None:
        return quantized(first, verbose)
    rungs = [
        settings
        for settings in rungs_from(first, tuple(ROUNDINGS))
        if settings == first or _can_be_placed(graph, settings, default, checked)
    ]
    return climb(rungs, quantized, metric, model, max_drop, verbose)


def _check_contract(max_drop: Any, metric: Any) -> None:
    if max_drop is not None:
        number(max_drop, "max_drop", least=0)
    if metric is not None and not callable(metric):
        raise ValueError(f"metric must be a function of a model. Received: {metric!r}")
    if (max_drop is None) != (metric is None):
        raise ValueError(
            "max_drop and metric must be given together. Received: "
            f"max_drop={max_drop!r}, metric={metric!r}"
        )


def _check_images(count: int, rounding: str, max_drop: Any) -> None:
    if count >= _LEAST_IMAGES or rounding == "nearest" and max_drop is None:
        return
    what = f"rounding={rounding!r}" if max_drop is None else f"max_drop={max_drop!r}"
    raise ValueError(
        f"calibration_data must be at least {_LEAST_IMAGES} images with {what}, better a few "
        f"hundred. Received: {count}"
    )


def _equalized(
    model: keras.Model, images: Images, required: bool, verbose: bool
) -> keras.Model:
    """The equalized model; the model itself where no channel of it can be scaled."""
    try:
        return equalize_on(images, model, verbose=verbose).model
    except ValueError as error:
        if required:
            raise
        if verbose:
            print(f"not equalized: {error}")
        return model


def _can_be_placed(
    graph: Graph, settings: Settings, default: LayerBits, rules: CheckedRules
) -> bool:
    """Whether a network takes the bits of some settings."""
    inputs = {node.name: True for node in graph.nodes.values() if node.is_input}
    try:
        place(graph, dataclasses.replace(default, **settings.of_layers), rules, inputs)
    except ValueError:
        return False
    return True
