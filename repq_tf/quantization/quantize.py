"""`quantize`: a float model in, a model ready for quantization-aware training out."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from repq_tf.arguments import boolean, check_bits, number
from repq_tf.arithmetic import ACTIVATION_BITS, BITS
from repq_tf.branches import check_mode
from repq_tf.calibration.execution import fitting
from repq_tf.calibration.images import Images, Lowest, store_images
from repq_tf.calibration.reconstruction import Rounding
from repq_tf.calibration.steps import calibrate, check_correction
from repq_tf.calibration.trained_range import warn_of_other_range
from repq_tf.graphs import Graph, read_graph, rebuild
from repq_tf.keras_api import keras, ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.layers.stock import MAPS, extras
from repq_tf.quantization.builder import Builder
from repq_tf.quantization.expand import expand
from repq_tf.quantization.grids import input_layers
from repq_tf.quantization.placement import place
from repq_tf.quantization.rules import CheckedRules, LayerBits, Rules, check_rules
from repq_tf.quantization.table import quantization_table
from repq_tf.quantizers import (
    check_range,
    check_step_gradient,
    check_weight_levels,
    check_wide_tap,
)
from repq_tf.user_warning import warn_user


def quantize(
    model: keras.Model,
    bits: int = 8,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    rules: Rules | None = (),
    bn_statistics: str = "restored",
    restore_batch_norm: bool | None = None,
    per_channel: bool = True,
    weight_range: str = "min_error",
    activation_range: str = "min_error",
    correct: str | None = "moments",
    calibration_data: Any = None,
    calibration_images: int | None = 512,
    input_step: float | None = None,
    output_step: float | None = None,
    step_gradient: str = "bounded",
    weight_levels: str = "uniform",
    wide_tap: bool | str = False,
    dampening: float = 0.0,
    verbose: bool = True,
) -> keras.Model:
    """Returns a quantization-aware copy of a float model (RepQ with LSQ).

    Every convolution's merged kernel gets an LSQ quantizer, and so does every
    activation tensor that the integer runtime stores. The function that was learned stays:
    batch norms are corrected for what quantization does to the mean and the deviation of
    what they normalize, and where there is none, a bias for what it does to the mean (those
    of frozen layers too; a convolution with neither gets no correction). Channels that are
    constant lose their (huge) gain, and a range rule sets the first steps. Outputs keep their
    names, and what is frozen of the model is not trained. The given model is left as it is.

    Args:
        model: a Functional or Sequential Keras 3 model of our blocks and stock layers.
        bits: 2 to 8, of weights and activations.
        weight_bits: of weights; default `bits`.
        activation_bits: of activations, 2 to 8, or 16 for all of them (the file is then
            slower, since the runtime's fastest kernels do not take int16); default `bits`.
        rules: `(name pattern, settings)` pairs or a dict of them; a shell-style pattern
            and a dict with some of `weight_bits`, `weight_range`, `per_channel`, `wide_tap`,
            and, of the layer's output, `activation_bits` and `activation_range`; later ones
            win.
            First and last layers get 8 bits unless a rule names them. None instead of bits
            leaves a layer in floating point (such a model cannot be exported to integers).
            Where the runtime needs several operators for a layer x, a rule for x is one for
            all its weights and for its output; `x_mean`, `x_reduce` and `x_expand` name the
            inner layers of a `SqueezeExcite`.
        bn_statistics: where merged batch norms get their moments during training:
            "restored" (default), "batch" (RepQ-BN), "estimate" (RepQ-BNEst), "sample"
            or "running".
        restore_batch_norm: whether convolutions without a batch norm at their root get
            one that starts as the identity. Default: those with batch norms merged
            inside, when `bn_statistics="restored"`. True also for plain ones: the
            Merged baseline needs it.
        per_channel: whether each output channel's weights have a step of their own.
        weight_range: the rule by which weights get their first steps, and so the range
            beyond which they are clipped:
            "min_error", the least squared error;
            "mae", the least mean absolute error;
            "max", nothing is clipped;
            "percentile", one of ten thousand is;
            "kl", the least divergence of distributions, as TensorRT calibrates (8 bits alone);
            "output_error", the least error of what the convolution makes of its images.
        activation_range: likewise, of activations; with "output_error", the least error of
            what convolutions make of them, and where none reads them, tensors share a step or
            have 16 bits, "min_error". Tensors that share a step get the rule of the last of
            them that has another than this one.
        correct: what is corrected of what quantization does to features, by batch norms and
            biases: "moments" (default), their means and, by batch norms, their deviations;
            "bias", their means alone; "analytic" (DFQ, arXiv 1906.04721), what a kernel's
            rounding does to the mean of its output, where its input is a clipped normal
            distribution with beta and gamma of the batch norm before, or with the moments on
            the images where none is left: for images that are not of the training set
            (elsewhere, as behind a maximum, it is "bias"); None.
        calibration_data: a few hundred images as the model will see them: an array;
            `(images, labels)`, a tuple as for `fit`; or an iterable of batches, each an array
            or a tuple whose first item is one: a list, a generator, a `tf.data.Dataset`, a
            Keras `PyDataset`, a PyTorch `DataLoader`. For a model with several inputs, a dict
            or list of arrays, as for `fit`, stands in the place of an array of images.
        calibration_images: how many of them to read at most: of an array as many at equal
            distances, of an iterable the first ones. None reads all. They decide whether
            the model's input has negative values, too.
        input_step: the fixed step of the model's inputs, where their values lie on a grid
            anyway: 1/128 for pixels that are given as (p - 128)/128. Default: it is learned.
        output_step: likewise, of the model's outputs.
        step_gradient: how fast the steps of the weights learn: "bounded" (default), about as
            fast as the weights, or "lsq", by LSQ's published gradient scale.
        weight_levels: which numbers of steps the weights of kernels of at most 4 bits may be:
            "uniform" (default), all between two bounds, -2, -1, 0 and 1 at 2 bits; "odd",
            as many odd ones, -3, -1, 1 and 3, see `repq_tf.quantizers.LSQ`; or "cluster", as
            many of int8, where each filter's weights are (ClusterQAT), see
            `repq_tf.quantizers.ClusterLSQ`. Those of the last two are the nearest ones and
            their steps are set by "min_error" where `weight_range` is "output_error", as with
            `wide_tap`, which does not go with "cluster".
        wide_tap: whether kernels that can hold an identity (an odd size, strides of 1, as many
            filters as channels) have the bounds of int8 for its weight, which the file's
            container holds anyway: of re-parameterized blocks with an identity branch, below
            5 bits; see `repq_tf.quantizers.WideTapLSQ`. "auto": those of at most 4 bits whose
            error it at least halves, as of merged kernels whose centre stands out. Their
            steps are set by "min_error" where `weight_range` is "output_error", and their
            levels are the nearest ones.
        dampening: the weight of a loss that draws weights to their levels in training, so that
            they oscillate less between two of them at few bits (arXiv 2203.11086): the sum of
            their squared distances. 0 (default) for none.
        verbose: whether to print what was quantized.

    Returns:
        An uncompiled Functional `keras.Model` with the same inputs and outputs.

    Raises:
        ValueError: an argument is bad, or a layer cannot be quantized (it is named).

    Warns:
        UserWarning: a stock layer has a constraint or a regularizer, other than of its kernel,
            that quantized training goes on without; or features at the first batch norm are of
            another size than those that it was trained on.

    Example:
        >>> qat = repq_tf.quantize(model, bits=4, calibration_data=images[:512])
        >>> qat.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        >>> qat.fit(images, labels)
    """
    default = default_bits(
        bits,
        weight_bits,
        activation_bits,
        per_channel,
        weight_range,
        activation_range,
        weight_levels,
        wide_tap,
    )
    check_mode(bn_statistics)
    boolean(restore_batch_norm, "restore_batch_norm", optional=True)
    check_step_gradient(step_gradient)
    check_correction(correct)
    number(dampening, "dampening", least=0)
    boolean(verbose, "verbose")
    rules = check_rules(rules)
    for name, step in (("input_step", input_step), ("output_step", output_step)):
        if step is not None:
            number(step, name, above=0)
    graph = read_float(model)
    # What cannot be quantized is refused before images run through it.
    place(graph, default, rules, dict.fromkeys(graph.input_keys, True))
    _warn_of_extras(graph)
    found = store_images(calibration_data, model, fitting(graph), calibration_images)
    warn_of_other_range(graph, found[0][0], "calibration_data")
    return quantize_graph(
        graph,
        found,
        default,
        rules,
        (input_step, output_step),
        correct,
        verbose,
        bn_statistics=bn_statistics,
        restore_batch_norm=restore_batch_norm,
        step_gradient=step_gradient,
        dampening=dampening,
    )


def quantize_graph(
    graph: Graph,
    images: tuple[Images, Lowest],
    bits: LayerBits,
    rules: CheckedRules,
    end_steps: tuple[float | None, float | None] = (None, None),
    correct: str | None = "moments",
    verbose: bool = True,
    rounding: Rounding | None = None,
    **options: Any,
) -> keras.Model:
    """A quantized and calibrated model, from arguments of `quantize` that are checked.

    Args:
        graph: from `read_float`.
        images: from `store_images`.
        bits: from `default_bits`.
        rules: from `check_rules`.
        end_steps: the fixed steps of the model's inputs and of its outputs.
        correct: as in `quantize`.
        verbose: likewise.
        rounding: as in `calibrate`.
        **options: the others of `uncalibrated`.
    """
    stored, lowest = images
    steps = [(name, end_steps[0]) for name in graph.input_keys]
    steps += [(tensor.node, end_steps[1]) for tensor in graph.output_tensors]
    fixed = [(name, step) for name, step in steps if step is not None]
    signed = signed_inputs(graph, lowest)
    quantized, builder = uncalibrated(graph, bits, rules, signed, steps=fixed, **options)
    calibrate(quantized, graph, builder, stored, correct, verbose, rounding=rounding)
    if verbose:
        print(quantization_table(quantized))
        print(f"calibrated on {stored.images} image{'s' * (stored.images > 1)}")
    return quantized


def check_quantizable(
    model: keras.Model,
    bits: int = 8,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
) -> None:
    """Raises the error with which `quantize` refuses a network, without images.

    It can be asked of an untrained network, before time is spent on it.

    Args:
        model: a Functional or Sequential Keras model.
        bits: as in `quantize`.
        weight_bits: likewise.
        activation_bits: likewise.

    Raises:
        ValueError: A layer cannot be quantized; it is named.
    """
    graph = read_float(model)
    default = default_bits(bits, weight_bits, activation_bits)
    place(graph, default, (), dict.fromkeys(graph.input_keys, True))


def read_float(model: keras.Model) -> Graph:
    """The expanded graph of a model that is to be quantized.

    Raises:
        ValueError: it is quantized already, or no model whose graph can be read.
    """
    graph = read_graph(model)
    check_float(graph)
    return expand(graph)


def check_float(graph: Graph) -> None:
    """Raises a ValueError if the model that a graph was read from is quantized."""
    if any(isinstance(node.layer, Quantize) for node in graph.nodes.values()):
        raise ValueError(
            f"model {graph.name!r} is quantized already; give the float model it was made of"
        )


def default_bits(
    bits: int,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    per_channel: bool = True,
    weight_range: str = "min_error",
    activation_range: str = "min_error",
    weight_levels: str = "uniform",
    wide_tap: bool | str = False,
) -> LayerBits:
    """The `LayerBits` of layers that no rule names, from the arguments of `quantize`."""

    def checked(value: int | None, name: str, allowed: Collection[int]) -> int:
        value, name = (bits, "bits") if value is None else (value, name)
        return check_bits(value, name, allowed)

    return LayerBits(
        checked(weight_bits, "weight_bits", BITS),
        checked(activation_bits, "activation_bits", ACTIVATION_BITS),
        boolean(per_channel, "per_channel"),
        check_range(weight_range, "weight_range"),
        check_range(activation_range, "activation_range"),
        check_weight_levels(weight_levels),
        check_wide_tap(wide_tap),
    )


def uncalibrated(
    graph: Graph,
    bits: LayerBits,
    rules: CheckedRules,
    signed: Mapping[str, bool],
    bn_statistics: str = "restored",
    restore_batch_norm: bool | None = None,
    steps: Iterable[tuple[str, float]] = (),
    step_gradient: str = "bounded",
    dampening: float = 0.0,
) -> tuple[keras.Model, Builder]:
    """The quantized model with the float one's weights, before it has seen images.

    Args:
        graph: the float model's `Graph`.
        bits: the default `LayerBits`.
        rules: pairs from `check_rules`.
        signed: for the name of each input, whether it has negative values.
        bn_statistics: as in `quantize`.
        restore_batch_norm: likewise.
        steps: pairs of a node's name and the fixed step of its tensor's grid.
        step_gradient: as in `quantize`.
        dampening: likewise.

    Returns:
        `(model, builder)`; the builder knows the placement, and which batch norms are new.
    """
    placement = place(graph, bits, rules, signed, steps)
    builder = Builder(placement, bn_statistics, restore_batch_norm, step_gradient, dampening)
    quantized = rebuild(graph, builder.apply, builder.apply_input, f"{graph.name}_quantized")
    builder.copy_weights()
    return quantized, builder


def signed_inputs(graph: Graph, lowest: Lowest) -> dict[str, bool]:
    """Whether what is quantized of each input is negative where images have their least value.

    Args:
        graph: the float model's `Graph`.
        lowest: the least value of the images, from `store_images`.
    """
    return {
        name: _is_signed(graph, name, lowest[name] if isinstance(lowest, Mapping) else lowest)
        for name in graph.input_keys
    }


def _is_signed(graph: Graph, name: str, lowest: float) -> bool:
    source = graph.nodes[name]
    *_, channels = source.input_shape
    values = np.full((2, *(1 for _ in source.input_shape[1:-1]), channels), lowest, "float32")
    values[1] += 1
    for node in input_layers(graph, source):
        if type(node.layer) in MAPS:
            values = ops.convert_to_numpy(node.layer(values))
    falls = (values[1] < values[0]).any()
    return bool(falls or (values[0] < 0).any())


def _warn_of_extras(graph: Graph) -> None:
    for node in graph.nodes.values():
        if isinstance(node.layer, ReparamConv) or not (found := extras(node.layer)):
            continue
        warn_user(
            f"layer {node.name!r} ({type(node.layer).__name__}): quantized training goes on "
            f"without its {', '.join(found)}"
        )
