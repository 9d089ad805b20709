"""The layers of a quantized model, made while the float model's graph is walked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from repq_tf.arguments import pair
from repq_tf.branches import NumpyReading
from repq_tf.graphs import Node, copy_call, copy_layer, copy_state, free_name
from repq_tf.keras_api import Config, Layer, Tensor, keras
from repq_tf.layers import DenseBlock, Quantize, ReparamConv
from repq_tf.layers.freezing import copy_trainable, is_frozen
from repq_tf.layers.stock import assign, copy_stock, stock_block, stock_kernel
from repq_tf.quantization.grids import OPERATOR
from repq_tf.quantization.sites import Placement, Site
from repq_tf.quantizers import has_identity_taps, tap_stands_out


class Builder:
    """Makes the layers of the quantized model while the source graph is walked."""

    def __init__(
        self,
        placement: Placement,
        bn_statistics: str,
        restore_batch_norm: bool | None,
        step_gradient: str,
        dampening: float,
    ) -> None:
        self.placement = placement
        self.bn_statistics = bn_statistics
        self.restore_batch_norm = restore_batch_norm
        self.step_gradient = step_gradient
        self.dampening = dampening
        self.quantizers: dict[str, Quantize] = {}
        self.steps: dict[str, Tensor] = {}
        self.zero_points: dict[str, int] = {}
        # By the names of sites; those of calls of one layer have one.
        self.blocks: dict[str, ReparamConv] = {}
        self._shared: dict[int, ReparamConv] = {}
        # The range rules of kernels and of stored tensors, by the name of the quantized layer.
        self.ranges: dict[str, str] = {}

    def apply(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Applies what a source node becomes."""
        sites = self.placement.sites
        site = sites.get(node.name)
        if node.name in self.placement.preparing:
            return self._prepare(node, args)
        if site is None:  # fused into the site before
            return args[0]
        if site.kind == "input":
            return self.quantize_output(site, self._prepare(node, args))
        if site.kind == "convolution":
            return self._convolution(site, args[0])
        if site.operator is not None and site.operator.make is not None:
            if site.kind == "same_scale":
                return self._on_input_grid(site, site.operator.make, args[0])
            floats = site.kind == "fixed" and self._input_group(site) not in self.steps
            if site.bits.activation_bits and not floats:
                return self._on_own_grid(site, site.operator.make, args)
        y = self._copy(site, args)(*args, **kwargs)
        if site.fused:
            name = self.placement.ends.get(site.name, site.fused[-1])
            y = keras.layers.Activation(site.activation, name=name, dtype="float32")(y)
        return self.quantize_output(site, y)

    def _copy(self, site: Site, args: tuple[Any, ...]) -> Layer:
        """The layer itself; in float32, since half precision moves values off their grid."""
        last = not site.fused and not self._rounds(site)
        copy = copy_layer(site.layer, self._name(site, last), dtype="float32")
        if site.layer.weights:
            copy.build(args[0].shape)
            copy_state(site.layer, copy)
        return copy

    def _convolution(self, site: Site, x: Tensor) -> Tensor:
        step = self.steps.get(self._input_group(site))
        block = self._shared.get(id(site.layer))
        if block is None:
            block = self._shared[id(site.layer)] = self._block(site, x.shape[-1])
        self.blocks[site.name] = block
        self.ranges[block.name] = site.bits.weight_range
        if step is None or block.weight_quantizer is None:
            return self.quantize_output(site, block(x))
        if site.bits.activation_bits == 16:
            y, scale = block(x, step, wide=True)
            rounding = "twice" if block.groups == 1 else "reduced"
            return self.quantize_output(site, y, scale, rounding=rounding)
        return self.quantize_output(site, *block(x, step))

    def _input_group(self, site: Site, index: int = 0) -> str:
        return self.placement.sites[site.inputs[index]].group

    def _on_own_grid(
        self, site: Site, make: Callable[..., Layer], args: tuple[Any, ...]
    ) -> Tensor:
        """An operator with a quantizer of its own.

        Where several tensors share one scale, as in a concatenation, or an average is rounded
        to it as well, its grid has 8 bits (or 16) and the shared quantizer follows: the
        operators' rounding is right for one grid alone.
        """
        shared = self._shares_quantizer(site) and site.kind != "fixed"
        groups = [self._input_group(site, index) for index in range(len(site.inputs))]
        if any(group not in self.steps for group in groups):
            raise ValueError(
                f"layer {site.name!r}: its inputs have no quantizer, but its output has; "
                "check the rules"
            )
        layer = make(
            site,
            self.zero_points[groups[0]],
            bits=max(8, site.bits.activation_bits or 8)
            if shared
            else site.bits.activation_bits,
            signed=site.signed and site.activation == "linear",
            step=None if shared else site.step,
            mirrored=site.mirrored and not shared,
            name=self._name(site, last=not shared),
            dtype=site.layer.dtype_policy,
        )
        tensors = args[0] if isinstance(args[0], list | tuple) else args[:1]
        y, step = layer(*tensors, *(self.steps[group] for group in groups))
        self.ranges[layer.name] = site.bits.activation_range
        if site.layer.weights:
            layer.copy_weights(site.layer)
        if shared and layer.bits == 16:
            return self.quantize_output(site, y, step, rounding="reduced")
        if shared:
            return self.quantize_output(site, y, step)
        self.steps[site.group] = step
        self.zero_points[site.group] = layer.zero_point
        return y

    def _on_input_grid(self, site: Site, make: Callable[..., Layer], x: Tensor) -> Tensor:
        """An operator whose results are rounded to the grid of its input."""
        step = self.steps.get(site.group)
        if step is None:
            return self._copy(site, (x,))(x)
        name = self._name(site, last=False)
        layer = make(site, self.zero_points[site.group], name=name)
        return self.quantize_output(site, layer(x, step))

    def apply_input(self, node: Node, x: Tensor) -> Tensor:
        """Quantizes an input of the model, unless layers prepare it first."""
        site = self.placement.sites.get(node.name)
        return x if site is None else self.quantize_output(site, x)

    def _prepare(self, node: Node, args: tuple[Any, ...]) -> Tensor:
        """Calls a layer that stands before what is quantized."""
        name = node.name
        if name in self.placement.ends.values():
            name = free_name(f"{name}{OPERATOR}", self.placement.alias)
        renamed = dataclasses.replace(node, name=name)
        return copy_call(renamed, args, {}, {}, dtype="float32")

    def quantize_output(
        self, site: Site, y: Tensor, scale: Tensor | None = None, **rounding: Any
    ) -> Tensor:
        """Puts the group's quantizer behind a site whose output needs rounding."""
        if not self._rounds(site):
            return y
        if site.group not in self.quantizers:
            name = self._free_name(site, "_quantize")
            if not self._shares_quantizer(site):
                name = self.placement.ends.get(site.name, name)
            bits = site.bits.activation_bits
            assert bits is not None  # or nothing is rounded
            layer = Quantize(bits, site.signed, site.step, site.mirrored, name=name)
            self.quantizers[site.group] = layer
            self.ranges[layer.name] = site.bits.activation_range
        quantizer = self.quantizers[site.group]
        self.zero_points[site.group] = quantizer.zero_point
        args = (y,) if scale is None else (y, scale)
        y, self.steps[site.group] = quantizer(*args, **rounding)
        return y

    def _name(self, site: Site, last: bool) -> str:
        """The name of a site's operator: the output's of the model, if it is the last layer."""
        ends = self.placement.ends
        if last and site.name in ends:
            return ends[site.name]
        return self._free_name(site, OPERATOR) if site.name in ends.values() else site.name

    def _free_name(self, site: Site, suffix: str) -> str:
        placement = self.placement
        return free_name(f"{site.name}{suffix}", {*placement.alias, *placement.ends.values()})

    def _rounds(self, site: Site) -> bool:
        """Whether a quantizer stands behind what a site computes."""
        return site.bits.activation_bits is not None and not self._on_grid(site)

    def _shares_quantizer(self, site: Site) -> bool:
        group = self.placement.groups[site.group]
        return sum(not self._on_grid(other) for other in group.sites) > 1

    def _on_grid(self, site: Site) -> bool:
        """Whether the output of a site lies on the grid of its input without rounding."""
        # ReLU6's bound and computed results are off that grid.
        moves = site.operator is None or site.operator.make is None
        return site.kind == "same_scale" and moves and site.activation != "relu6"

    def _block(self, site: Site, in_channels: int) -> ReparamConv:
        if isinstance(site.layer, ReparamConv):
            kind, config = type(site.layer), site.layer.get_config()
        else:
            kind, config = stock_block(site.layer, site.batch_norm)
        config.update(
            name=self._name(site, last=not self._rounds(site)),
            weight_bits=site.bits.weight_bits,
            per_channel=site.bits.per_channel,
            step_gradient=self.step_gradient,
            dampening=self.dampening,
            bn_statistics=self.bn_statistics,
            activation=site.activation,
        )
        if self.restore_batch_norm is not None and not isinstance(site.layer, _DENSE):
            config["restore_batch_norm"] = self.restore_batch_norm
        elif _has_trained_root(site.layer):
            config["restore_batch_norm"] = True
        few = site.bits.weight_bits is not None and site.bits.weight_bits <= 4
        config["weight_levels"] = site.bits.weight_levels if few else "uniform"
        tapped = config["weight_levels"] != "cluster" and _can_be_wide(config, in_channels)
        config["wide_tap"] = tapped and _wants_wide_tap(site)
        return kind.from_config(config)

    def copy_weights(self) -> None:
        """Copies the source layers' weights, and what is frozen of them, into the blocks."""
        for name, block in self.blocks.items():
            site = self.placement.sites[name]
            if isinstance(site.layer, ReparamConv):
                copy_trainable(site.layer, block)  # first: tf_keras orders weights by it
                assign(block.expression.weights, site.layer.expression.weights)
                if block.restored is not None and _has_trained_root(site.layer):
                    trained: Any = site.layer.restored
                    assign(block.restored.weights, trained.weights)
            else:
                copy_stock(site.layer, site.batch_norm, block)
            self._freeze_new_parts(site.layer, block)

    def _freeze_new_parts(self, source: Layer, block: ReparamConv) -> None:
        """Freezes what a block has beside its source, where all that it serves is frozen."""
        if block.weight_quantizer is not None and is_frozen(block.inner):
            block.weight_quantizer.trainable = False
        norms = block.merged_batch_norms
        if block.restored is not None and norms and not _has_trained_root(source):
            block.restored.trainable = block.trainable and any(n.trainable for n in norms)

    @functools.cached_property
    def fresh_roots(self) -> set[str]:
        """Names of the blocks whose restored batch norm is new; of all, when they are made."""
        return {
            block.name
            for name, block in self.blocks.items()
            if block.restored is not None
            and not _has_trained_root(self.placement.sites[name].layer)
        }

    @property
    def true_moments(self) -> set[str]:
        """Names of the blocks that were trained with exact moments."""
        sources = {
            block.name: self.placement.sites[name].layer for name, block in self.blocks.items()
        }
        return {
            name
            for name, layer in sources.items()
            if not (getattr(layer, "merged", False) and layer.bn_statistics == "estimate")
        }


_DENSE = (keras.layers.Dense, DenseBlock)


def _can_be_wide(config: Config, in_channels: int) -> bool:
    """Whether a block of some configuration can have a wide tap."""
    if "strides" not in config:  # a dense layer, or a transposed convolution
        return False
    size, strides = (pair(config[name], name) for name in ("kernel_size", "strides"))
    return has_identity_taps(in_channels, config["filters"], size, strides)


def _wants_wide_tap(site: Site) -> bool:
    """Whether a site's kernel, which can have a wide tap, gets one."""
    bits = site.bits
    if bits.wide_tap != "auto" or bits.weight_bits is None:
        return bool(bits.wide_tap)
    if isinstance(site.layer, ReparamConv):
        kernel = site.layer.inner.merge(NumpyReading()).kernel
    else:
        kernel = stock_kernel(site.layer)
    return tap_stands_out(kernel, bits.weight_bits, bits.weight_levels, bits.per_channel)


def _has_trained_root(layer: Layer) -> bool:
    """Whether a source block computes with a restored batch norm already."""
    return isinstance(layer, ReparamConv) and layer.merged and layer.restored is not None
