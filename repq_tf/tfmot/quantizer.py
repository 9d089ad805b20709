"""LSQ as a quantizer of TFMOT."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from repq_tf.arguments import boolean, check_bits
from repq_tf.keras_api import (
    Config,
    Layer,
    Tensor,
    Variable,
    add_parameter,
    add_statistic,
    keras,
    ops,
    register,
    replica_mean,
)
from repq_tf.quantizers import (
    check_step_gradient,
    check_weight_levels,
    kernel_quantizer,
    min_error_step,
)
from repq_tf.quantizers.step_init import usual_step
from repq_tf.tfmot.requirements import tfmot_keras


@register
class LSQQuantizer(tfmot_keras.quantizers.Quantizer):
    """LSQ in TFMOT: `repq_tf.quantizers.LSQ`, its arithmetic and its variables.

    Weights have a step for each output channel, also those of depthwise convolutions.

    Args:
        bits: 2 to 8.
        signed: whether the grid has negative levels.
        channels: number of steps, over the last axes of the tensor that have as many
            indices together; None: one step.
        per_image: whether the first axis is a batch: True for activations.
        step: the step to start with, a number or a list of `channels` numbers. None:
            the first batch in training sets it by MinError; until then, inference takes
            MinError's step of each batch.
        learned: whether the step is trained.
        tensors: number of tensors that the quantizer serves in turn; without `step`, the
            largest of their steps is taken.
        step_gradient: of weights, "bounded" or "lsq", as in `repq_tf.quantize`; the steps
            of activations learn as published.
        weight_levels: of weights, "uniform" or "odd", likewise; others than "uniform" need a
            step to start with.
        wide_tap: whether the weight of an identity has the levels of int8; likewise.

    Example:
        >>> quantizer = LSQQuantizer(bits=4, signed=False, per_image=True)
        >>> weights = quantizer.build(None, "output", layer)
        >>> y = quantizer(features, training=True, weights=weights)
    """

    def __init__(
        self,
        bits: int = 8,
        signed: bool = True,
        channels: int | None = None,
        per_image: bool = False,
        step: float | Sequence[float] | None = None,
        learned: bool = True,
        tensors: int = 1,
        step_gradient: str = "bounded",
        weight_levels: str = "uniform",
        wide_tap: bool = False,
    ) -> None:
        self.bits = check_bits(bits)
        self.signed = boolean(signed, "signed")
        self.channels = channels
        self.per_image = boolean(per_image, "per_image")
        self.step = step
        self.learned = boolean(learned, "learned")
        self.tensors = tensors
        self.step_gradient = check_step_gradient(step_gradient)
        self.weight_levels = check_weight_levels(weight_levels)
        self.wide_tap = boolean(wide_tap, "wide_tap")
        plain = weight_levels == "uniform" and not wide_tap
        if weight_levels == "cluster" or not plain and (step is None or per_image):
            raise ValueError(
                "weight_levels must be 'uniform' or 'odd', and with 'odd' or a wide_tap the"
                " quantizer be of weights that have a step to start with. Received:"
                f" weight_levels={weight_levels!r}, wide_tap={wide_tap}, step={step},"
                f" per_image={per_image}"
            )
        self._grid = kernel_quantizer(
            weight_levels,
            wide_tap,
            bits=bits,
            signed=signed,
            # An 8-bit weight's grid is symmetric.
            narrow=bits == 8 and not per_image,
            channels=channels,
            per_image=per_image,
            bounded=not per_image and step_gradient == "bounded",
        )
        self.low, self.high = self._grid.low, self._grid.high

    def build(self, tensor_shape: Any, name: str, layer: Layer) -> dict[str, Variable]:
        """Creates the step in `layer`, and says by which names `__call__` gets it."""
        shape = () if self.channels is None else (self.channels,)
        start = "ones" if self.step is None else keras.initializers.Constant(self.step)
        weights = {
            "initial_step": add_statistic(layer, f"{name}_initial_step", shape, start),
            "change": add_parameter(
                layer, f"{name}_step_change", shape, "zeros", trainable=self.learned
            ),
        }
        if self.step is None:
            weights["seen"] = add_statistic(layer, f"{name}_step_seen", (), "zeros")
        # TFMOT's QuantizeLayer does not say so, and would be built again after loading.
        layer.built = True
        return weights

    def __call__(
        self, inputs: Tensor, training: bool, weights: Mapping[str, Variable], **kwargs: Any
    ) -> Tensor:
        """Fake-quantizes a tensor."""
        values = inputs
        if self.channels is not None and inputs.shape[-1] != self.channels:
            values = ops.reshape(inputs, (-1, self.channels))
        start = weights["initial_step"]
        if self.step is None:
            start = self._first_step(values, training, weights)
        y = self._grid.rounded(values, start, weights["change"])
        return ops.reshape(y, ops.shape(inputs))

    def _first_step(
        self, values: Tensor, training: bool, weights: Mapping[str, Variable]
    ) -> Tensor:
        """The initial step; the first batch's MinError, which training keeps.

        Of a kernel of zeros it is the `usual_step`.
        """
        start, seen = weights["initial_step"], weights["seen"]

        def search() -> Tensor:
            step = min_error_step(values, self.low, self.high, self.channels is not None)
            if not self.per_image:
                usual = tf.cast(usual_step(tuple(values.shape), self.high), step.dtype)
                step = tf.where(tf.reduce_any(values != 0), step, usual)
            return tf.where(seen > 0, tf.maximum(step, start), step)

        step = tf.cond(seen >= self.tensors, lambda: tf.identity(start), search)
        step = replica_mean(tf.stop_gradient(step))
        if training:
            start.assign(step)
            seen.assign(tf.minimum(seen + 1.0, self.tensors))
        return step

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = (
            "bits signed channels per_image step learned tensors step_gradient weight_levels "
            "wide_tap"
        )
        return {name: getattr(self, name) for name in names.split()}
