"""How TFMOT quantizes a layer with LSQ: its weights, or its merged kernel, and its output."""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import numpy as np
import tensorflow as tf

from repq_tf.arguments import boolean, check_bits, number
from repq_tf.keras_api import Array, Config, Layer, Tensor, Variable, keras, ops, register
from repq_tf.layers import ReparamConv
from repq_tf.layers.freezing import is_frozen
from repq_tf.layers.stock import stock_kernel
from repq_tf.quantizers import check_weight_levels, kernel_quantizer
from repq_tf.tfmot.quantizer import LSQQuantizer
from repq_tf.tfmot.requirements import tfmot_keras


class OutputOptions(TypedDict, total=False):
    """The options of `OutputQuantizeConfig` beside the bits."""

    signed: bool | None
    step: float | None
    learned: bool


@register
class OutputQuantizeConfig(tfmot_keras.QuantizeConfig):
    """Quantizes a layer's output, and nothing else of it.

    Args:
        activation_bits: 2 to 8; None leaves the output as it is.
        signed: whether the output can be negative. Default: unless the layer is or ends
            with a ReLU.
        step: the step to start with; None: MinError on the first batch in training.
        learned: whether the step is trained.
    """

    def __init__(
        self,
        activation_bits: int | None = 8,
        signed: bool | None = None,
        step: float | None = None,
        learned: bool = True,
    ) -> None:
        if activation_bits is not None:
            check_bits(activation_bits, "activation_bits")
        self.activation_bits = activation_bits
        self.signed = boolean(signed, "signed", optional=True)
        self.step = step if step is None else number(step, "step", above=0)
        self.learned = boolean(learned, "learned")

    def get_weights_and_quantizers(self, layer: Layer) -> list[tuple[Variable, LSQQuantizer]]:
        """No weights: TFMOT would quantize those of branches."""
        return []

    def set_quantize_weights(self, layer: Layer, quantize_weights: Sequence[Tensor]) -> None:
        """Nothing to set."""
        return None  # AutoGraph cannot read a body that is a docstring alone

    def get_activations_and_quantizers(self, layer: Layer) -> list[tuple[Any, LSQQuantizer]]:
        """No activations: what is fused stands in front of the output quantizer."""
        return []

    def set_quantize_activations(
        self, layer: Layer, quantize_activations: Sequence[Any]
    ) -> None:
        """Nothing to set."""
        return None

    def get_output_quantizers(self, layer: Layer) -> list[LSQQuantizer]:
        """The quantizer of the output, if there is one."""
        if self.activation_bits is None:
            return []
        signed = not _rectifies(layer) if self.signed is None else self.signed
        return [
            LSQQuantizer(
                self.activation_bits,
                signed,
                per_image=True,
                step=self.step,
                learned=self.learned,
            )
        ]

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = "activation_bits signed step learned"
        return {name: getattr(self, name) for name in names.split()}


class _WeightConfig(OutputQuantizeConfig):
    """The base of the two that also quantize a kernel.

    Attributes:
        weight_levels: as in `repq_tf.quantize`.
        wide_tap: likewise.

    Args:
        weight_bits: 2 to 8.
        activation_bits: of the output.
        per_channel: whether each output channel has a step of its own.
        **options: those of `OutputQuantizeConfig`.
    """

    weight_levels = "uniform"
    wide_tap = False

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int | None = 8,
        per_channel: bool = True,
        **options: Unpack[OutputOptions],
    ) -> None:
        super().__init__(activation_bits, **options)
        self.weight_bits = check_bits(weight_bits, "weight_bits")
        self.per_channel = boolean(per_channel, "per_channel")

    def weight_quantizer(self, kernel: Array, **options: Any) -> LSQQuantizer:
        """The quantizer of a kernel, a NumPy array whose last axis is the outputs'.

        Its step starts as MinError's for this kernel.
        """
        channels = kernel.shape[-1] if self.per_channel else None
        with tf.init_scope():
            grid = kernel_quantizer(
                self.weight_levels, self.wide_tap, bits=self.weight_bits, channels=channels
            )
            grid.build(None)
            grid.initialize(kernel)
            step = ops.convert_to_numpy(grid.step)
        return LSQQuantizer(
            self.weight_bits,
            channels=channels,
            step=step.tolist(),
            weight_levels=self.weight_levels,
            wide_tap=self.wide_tap,
            **options,
        )

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "weight_bits": self.weight_bits,
            "per_channel": self.per_channel,
        }


@register
class ReparamQuantizeConfig(_WeightConfig):
    """Quantizes a block of `repq_tf.layers` on its merged kernel, and its output.

    TFMOT is handed the block's kernel hook as an "activation", which it replaces by a
    quantizing one; so LSQ sits on the merged kernel, inside `call`. The block must have
    been made with `merged=True`; its `step_gradient` is the quantizer's.

    Args:
        weight_bits: 2 to 8, of the merged kernel.
        activation_bits: 2 to 8, of the output; None: the output is quantized elsewhere.
        per_channel: whether each output channel of the kernel has a step of its own.
        calibrated: whether the moving statistics are those of the network's features, so that
            the merged kernel's MinError step is known before training. Default: the first
            batch in training sets it.
        weight_levels: "uniform" or "odd", as in `repq_tf.quantize`; others than "uniform" only
            if it is calibrated.
        wide_tap: whether the weight of an identity has the levels of int8; likewise.
        **options: those of `OutputQuantizeConfig`.

    Example:
        >>> block = repq_tf.layers.ACBlock(16, activation="relu", merged=True)
        >>> config = repq_tf.tfmot.ReparamQuantizeConfig(weight_bits=4)
        >>> block = tfmot.quantization.keras.quantize_annotate_layer(block, config)
    """

    def __init__(
        self,
        weight_bits: int = 8,
        activation_bits: int | None = 8,
        per_channel: bool = True,
        calibrated: bool = False,
        weight_levels: str = "uniform",
        wide_tap: bool = False,
        **options: Unpack[OutputOptions],
    ) -> None:
        super().__init__(weight_bits, activation_bits, per_channel, **options)
        self.calibrated = boolean(calibrated, "calibrated")
        self.weight_levels = check_weight_levels(weight_levels)
        self.wide_tap = boolean(wide_tap, "wide_tap")

    def get_activations_and_quantizers(self, layer: Layer) -> list[tuple[Any, LSQQuantizer]]:
        """The merged kernel, as the value of an activation, and its quantizer."""
        if not isinstance(layer, ReparamConv):
            raise ValueError(
                f"layer {layer.name!r}: ReparamQuantizeConfig is for blocks of repq_tf.layers. "
                f"Received: {type(layer).__name__}"
            )
        options: dict[str, Any] = {
            "learned": not is_frozen(layer.inner),
            "step_gradient": layer.step_gradient,
        }
        if self.calibrated:
            with tf.init_scope():
                kernel = ops.convert_to_numpy(layer.inner.merge().kernel)
            quantizer = self.weight_quantizer(kernel, **options)
        else:
            channels = layer.filters if self.per_channel else None
            quantizer = LSQQuantizer(
                self.weight_bits,
                channels=channels,
                weight_levels=self.weight_levels,
                wide_tap=self.wide_tap,
                **options,
            )
        return [(keras.activations.linear, quantizer)]

    def set_quantize_activations(
        self, layer: Layer, quantize_activations: Sequence[Any]
    ) -> None:
        """Puts the quantizer on the merged kernel."""
        (layer.kernel_hook,) = quantize_activations

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        names = ("calibrated", "weight_levels", "wide_tap")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@register
class LSQQuantizeConfig(_WeightConfig):
    """Quantizes a stock Conv2D, DepthwiseConv2D or Dense, per output channel, and its output.

    The layer's own activation stands in front of the output quantizer.

    Args:
        weight_bits: 2 to 8, of the kernel.
        activation_bits: 2 to 8, of the output; None: the output is quantized elsewhere.
        per_channel: whether each output channel of the kernel has a step of its own; with
            DepthwiseConv2D truly each (TFMOT's own has one for all at multiplier 1).
        **options: those of `OutputQuantizeConfig`.

    Example:
        >>> conv = keras.layers.DepthwiseConv2D(3, activation="relu")
        >>> config = repq_tf.tfmot.LSQQuantizeConfig(weight_bits=8)
        >>> conv = tfmot.quantization.keras.quantize_annotate_layer(conv, config)
    """

    def get_weights_and_quantizers(self, layer: Layer) -> list[tuple[Variable, LSQQuantizer]]:
        """The kernel and its quantizer."""
        with tf.init_scope():
            kernel = stock_kernel(layer)
        variable = getattr(layer, kernel_name(layer))
        kernel = np.reshape(kernel, (-1, kernel.shape[-1]))
        return [(variable, self.weight_quantizer(kernel, learned=layer.trainable))]

    def set_quantize_weights(self, layer: Layer, quantize_weights: Sequence[Tensor]) -> None:
        """Puts the quantized kernel into the layer."""
        (kernel,) = quantize_weights
        setattr(layer, kernel_name(layer), kernel)


def kernel_name(layer: Layer) -> str:
    """The attribute, and the variable, of a stock layer that is its kernel."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return "depthwise_kernel"
    if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
        return "kernel"
    raise ValueError(
        f"layer {layer.name!r}: LSQQuantizeConfig is for Conv2D, DepthwiseConv2D and Dense. "
        f"Received: {type(layer).__name__}"
    )


def _rectifies(layer: Layer) -> bool:
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope
    name = keras.activations.serialize(getattr(layer, "activation", keras.activations.linear))
    return name in ("relu", "relu6", "softmax", "sigmoid")
