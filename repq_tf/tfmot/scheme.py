"""RepQ as a scheme of TFMOT: what is quantized where in a whole model."""

import dataclasses
import glob
from collections.abc import Callable, Mapping
from typing import Any

from repq_tf.arguments import boolean
from repq_tf.branches import check_mode
from repq_tf.keras_api import Layer, keras
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import STOCK
from repq_tf.quantization import quantize
from repq_tf.quantization.quantize import default_bits, read_float, uncalibrated
from repq_tf.quantization.rules import CheckedRules, LayerBits, Rules, check_rules
from repq_tf.quantizers import check_step_gradient
from repq_tf.tfmot.configs import LSQQuantizeConfig, OutputQuantizeConfig, ReparamQuantizeConfig
from repq_tf.tfmot.requirements import tfmot_keras
from repq_tf.tfmot.wrap import to_tfmot


class RepQRegistry(tfmot_keras.QuantizeRegistry):
    """Which `QuantizeConfig` a layer gets that is annotated on its own.

    Args:
        bits: the `LayerBits` of every layer.
    """

    def __init__(self, bits: LayerBits) -> None:
        self.bits = bits

    def supports(self, layer: Layer) -> bool:
        """Whether there is a configuration for the layer."""
        return isinstance(layer, ReparamConv) or type(layer) in STOCK

    def get_quantize_config(self, layer: Layer) -> OutputQuantizeConfig:
        """The configuration of the layer."""
        if not self.supports(layer):
            raise ValueError(
                f"layer {layer.name!r} ({type(layer).__name__}) has no kernel to quantize"
            )
        kind: Callable[..., OutputQuantizeConfig] = LSQQuantizeConfig
        if isinstance(layer, ReparamConv):
            kind = ReparamQuantizeConfig
        return kind(self.bits.weight_bits, self.bits.activation_bits, self.bits.per_channel)


class RepQScheme(tfmot_keras.QuantizeScheme):
    """Quantizes a whole model for `quantize_apply`, with no annotation by hand.

    The placement is that of `repq_tf.quantize`: the model's input, every merged kernel, and
    one quantizer for each tensor that the integer runtime stores, behind the fused
    activation; none for operators that keep the scale of their input. Stock convolutions
    become blocks, with the BatchNormalization and the ReLU behind them. A layer that was
    annotated with a config of `repq_tf.tfmot` gets its bits.

    Args:
        bits: 2 to 8, of weights and activations; the first and last layers get 8.
        weight_bits: of weights; default `bits`.
        activation_bits: of activations; default `bits`.
        rules: as in `repq_tf.quantize`.
        bn_statistics: likewise. Default: "restored" with calibration data, and without,
            "running", which needs none and is stable.
        restore_batch_norm: likewise; True needs calibration data.
        per_channel: likewise.
        calibration_data: images, as in `repq_tf.quantize`: they set the steps, correct the
            batch norms and tell whether the input has negative values.
            Without, the first training batch sets the steps, and the input is signed.
        calibration_images: likewise.
        step_gradient: as in `repq_tf.quantize`.
        weight_levels: "uniform" or "odd", likewise; "odd" needs calibration data.
        wide_tap: as in `repq_tf.quantize`; it needs calibration data.

    Raises:
        ValueError: an argument is bad; or, from `quantize_apply`, a layer cannot be
            quantized (it is named).
    """

    def __init__(
        self,
        bits: int = 8,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        rules: Rules | None = (),
        bn_statistics: str | None = None,
        restore_batch_norm: bool | None = None,
        per_channel: bool = True,
        calibration_data: Any = None,
        calibration_images: int | None = 512,
        step_gradient: str = "bounded",
        weight_levels: str = "uniform",
        wide_tap: bool | str = False,
    ) -> None:
        self._bits = default_bits(
            bits,
            weight_bits,
            activation_bits,
            per_channel,
            weight_levels=weight_levels,
            wide_tap=wide_tap,
        )
        self._rules = check_rules(rules)
        _check_levels(dataclasses.asdict(self._bits), calibration_data is not None)
        for pattern, settings in self._rules:
            _check_levels(settings, calibration_data is not None, f"rule {pattern!r}: ")
        self._data = calibration_data
        self._images = calibration_images
        self._step_gradient = check_step_gradient(step_gradient)
        if bn_statistics is None:
            bn_statistics = "running" if calibration_data is None else "restored"
        self._bn_statistics = check_mode(bn_statistics)
        self._restore_batch_norm = boolean(restore_batch_norm, "restore_batch_norm", True)
        if calibration_data is None and (bn_statistics == "restored" or restore_batch_norm):
            raise ValueError(
                "calibration_data must be given to restore batch norms, which start from the "
                f"moments of features. Received: bn_statistics={bn_statistics!r}, "
                f"restore_batch_norm={restore_batch_norm}, calibration_data=None"
            )

    def get_layout_transformer(self) -> "_Layout":
        """The transform that places the quantizers."""
        return _Layout(self._quantize, calibrated=self._data is not None)

    def get_quantize_registry(self) -> RepQRegistry:
        """The registry, for layers that are annotated on their own."""
        return RepQRegistry(self._bits)

    def _quantize(self, model: keras.Model, rules: CheckedRules) -> keras.Model:
        """The model quantized by our own layers."""
        rules = [*self._rules, *rules]
        options: dict[str, Any] = {
            "bn_statistics": self._bn_statistics,
            "restore_batch_norm": self._restore_batch_norm,
            "step_gradient": self._step_gradient,
        }
        if self._data is None:
            graph = read_float(model)
            return uncalibrated(
                graph, self._bits, rules, dict.fromkeys(graph.input_keys, True), **options
            )[0]
        return quantize(
            model,
            weight_bits=self._bits.weight_bits,
            activation_bits=self._bits.activation_bits,
            per_channel=self._bits.per_channel,
            weight_levels=self._bits.weight_levels,
            wide_tap=self._bits.wide_tap,
            rules=rules,
            calibration_data=self._data,
            calibration_images=self._images,
            verbose=False,
            **options,
        )


class _Layout(tfmot_keras.QuantizeLayoutTransform):
    """Rearranges a model so that TFMOT has only to wrap its layers.

    Args:
        quantize: `quantize(model, rules)` returns the model quantized by our own layers.
        calibrated: whether its activations' steps are set then.
    """

    def __init__(
        self, quantize: Callable[[keras.Model, CheckedRules], keras.Model], calibrated: bool
    ) -> None:
        self._quantize = quantize
        self._calibrated = calibrated

    def apply(
        self, model: keras.Model, layer_quantize_map: Mapping[str, Any]
    ) -> tuple[keras.Model, dict[str, Any]]:
        """Returns the model with what TFMOT shall wrap, and the configs by layer name."""
        rules = []
        for layer in model.layers:
            if isinstance(layer, keras.layers.InputLayer):
                continue
            if layer.name not in layer_quantize_map:
                raise ValueError(
                    f"layer {layer.name!r} is not annotated. Use quantize_annotate_model; "
                    "rules leave layers in floating point: RepQScheme(rules=[(name, "
                    '{"weight_bits": None, "activation_bits": None})])'
                )
            config = layer_quantize_map[layer.name].get("quantize_config")
            if config is not None:
                rules.append((glob.escape(layer.name), _settings(layer, config)))
        return to_tfmot(self._quantize(model, rules), self._calibrated)


def _check_levels(settings: Mapping[str, Any], calibrated: bool, where: str = "") -> None:
    """Refuses levels of weights that TFMOT's quantizers cannot have."""
    levels, wide_tap = settings.get("weight_levels", "uniform"), settings.get("wide_tap", False)
    if levels == "cluster":
        raise ValueError(
            f"{where}weight_levels must be 'uniform' or 'odd' under TFMOT; repq_tf.quantize has"
            " codebooks. Received: 'cluster'"
        )
    if not calibrated and (levels != "uniform" or wide_tap):
        raise ValueError(
            f"{where}calibration_data must be given with weight_levels='odd' or wide_tap, whose"
            f" steps start from kernels. Received: weight_levels={levels!r},"
            f" wide_tap={wide_tap!r}"
        )


def _settings(layer: Layer, config: Any) -> dict[str, Any]:
    """The rule that says what a config says."""
    if not isinstance(config, OutputQuantizeConfig):
        raise ValueError(
            f"layer {layer.name!r}: a config must be one of repq_tf.tfmot. "
            f"Received: {type(config).__name__}"
        )
    names = ("weight_bits", "activation_bits", "per_channel", "weight_levels", "wide_tap")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}
