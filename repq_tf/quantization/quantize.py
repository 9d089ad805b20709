"""`quantize`: a float model in, a model ready for quantization-aware training out."""

from repq_tf.branches import check_mode
from repq_tf.keras_api import keras
from repq_tf.layers import (
    DenseBlock,
    Quantize,
    QuantizedAdd,
    QuantizedAveragePooling2D,
    QuantizedMean,
    ReparamConv,
)
from repq_tf.quantization.calibration import calibrate
from repq_tf.quantization.config import LayerBits, check_rules
from repq_tf.quantization.execution import as_batches, run_batches
from repq_tf.quantization.graph import copy_layer, read_graph, rebuild
from repq_tf.quantization.placement import place
from repq_tf.quantization.stock_blocks import assign, copy_stock, stock_block
from repq_tf.quantization.table import quantization_table
from repq_tf.quantizers import check_bits, zero_point

SOFTMAX_STEP = 1 / 256  # what the integer runtime prescribes


def quantize(
    model,
    bits=8,
    weight_bits=None,
    activation_bits=None,
    rules=(),
    bn_statistics="restored",
    restore_batch_norm=None,
    per_channel=True,
    calibration_data=None,
    verbose=True,
):
    """Returns a quantization-aware copy of a float model (RepQ with LSQ).

    Every convolution's merged kernel gets an LSQ quantizer, and so does every
    activation tensor that the integer runtime stores. Statistics of batch norms are
    re-estimated with the quantizers on, channels that are constant lose their
    (huge) gain without changing the function, and steps start at the least squared error
    on the calibration data. The given model is left as it is.

    Args:
        model: a Functional or Sequential Keras 3 model of our blocks and stock layers.
        bits: 2 to 8, of weights and activations.
        weight_bits: of weights; default `bits`.
        activation_bits: of activations; default `bits`.
        rules: `(name pattern, settings)` pairs or a dict of them; a shell-style pattern
            and a dict with some of `weight_bits`, `activation_bits` (of the layer's
            output) and `per_channel`; later ones win. First and last layers get 8 bits
            unless a rule names them. None instead of bits leaves a layer in floating
            point (such a model cannot be exported to integers).
        bn_statistics: where merged batch norms get their moments during training:
            "restored" (default), "batch" (RepQ-BN), "estimate" (RepQ-BNEst), "sample"
            or "running".
        restore_batch_norm: whether convolutions without a batch norm at their root get
            one that starts as the identity. Default: those with batch norms merged
            inside, when `bn_statistics="restored"`. True also for plain ones: the
            Merged baseline needs it.
        per_channel: whether each output channel's weights have a step of their own.
        calibration_data: an array of images, or an iterable of batches; a few hundred
            images as the model will see them.
        verbose: whether to print what was quantized.

    Returns:
        An uncompiled Functional `keras.Model` with the same inputs and outputs.

    Raises:
        ValueError: an argument is bad, or a layer cannot be quantized (it is named).

    Example:
        >>> qat = repq_tf.quantize(model, bits=4, calibration_data=images[:512])
        >>> qat.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        >>> qat.fit(images, labels)
    """
    default = default_bits(bits, weight_bits, activation_bits, per_channel)
    check_mode(bn_statistics)
    rules = check_rules(rules)
    graph = read_graph(model)
    _one_input(graph)
    batches = as_batches(calibration_data, model)
    signed = bool(min(batch.min() for batch in batches) < 0)
    quantized, builder = uncalibrated(
        graph, default, rules, signed, bn_statistics, restore_batch_norm
    )
    calibrate(
        quantized,
        batches,
        builder.fresh_roots,
        builder.true_moments,
        _shared_values(graph, builder.placement, batches),
    )
    if verbose:
        print(quantization_table(quantized))
    return quantized


def default_bits(bits, weight_bits=None, activation_bits=None, per_channel=True):
    """The `LayerBits` of layers that no rule names, from the arguments of `quantize`."""
    return LayerBits(
        check_bits(bits if weight_bits is None else weight_bits, "weight_bits"),
        check_bits(bits if activation_bits is None else activation_bits, "activation_bits"),
        per_channel,
    )


def uncalibrated(graph, bits, rules, signed, bn_statistics, restore_batch_norm=None):
    """The quantized model with the float one's weights, before it has seen images.

    Args:
        graph: the float model's `Graph`.
        bits: the default `LayerBits`.
        rules: pairs from `check_rules`.
        signed: whether the model's input has negative values.
        bn_statistics: as in `quantize`.
        restore_batch_norm: likewise.

    Returns:
        `(model, builder)`; the builder knows the placement, and which batch norms are new.
    """
    placement = place(graph, bits, rules, {_one_input(graph): signed})
    builder = _Builder(placement, bn_statistics, restore_batch_norm)
    quantized = rebuild(graph, builder.apply, builder.apply_input, f"{graph.name}_quantized")
    builder.copy_weights()
    return quantized, builder


def _one_input(graph):
    inputs = [node.name for node in graph.nodes.values() if node.is_input]
    if len(inputs) != 1:
        raise ValueError(f"model {graph.name!r} must have one input")
    return inputs[0]


class _Builder:
    """Makes the layers of the quantized model while the source graph is walked."""

    def __init__(self, placement, bn_statistics, restore_batch_norm):
        self.placement = placement
        self.bn_statistics = bn_statistics
        self.restore_batch_norm = restore_batch_norm
        self.quantizers = {}
        self.steps = {}
        self.zero_points = {}
        self.blocks = {}

    def apply(self, node, args, kwargs):
        """Applies what a source node becomes."""
        sites = self.placement.sites
        site = sites.get(node.name)
        if site is None:  # fused into the site before
            return args[0]
        if site.kind == "convolution":
            return self._convolution(site, args[0])
        shared = len(self.placement.origins(site.group)) > 1
        if type(node.layer) in _QUANTIZED and site.bits.activation_bits and not shared:
            return self._quantized_operator(site, args)
        if isinstance(node.layer, keras.layers.AveragePooling2D):
            return self._average(site, args[0])
        # In float32, since half precision would move values off their grid.
        y = copy_layer(node.layer, node.name, dtype="float32")(*args, **kwargs)
        if site.fused:
            name = site.fused[-1]
            y = keras.layers.Activation(site.activation, name=name, dtype="float32")(y)
        return self.quantize_output(site, y)

    def _convolution(self, site, x):
        step = self.steps.get(self._input_group(site))
        block = self.blocks[site.name] = self._block(site)
        if step is None or block.weight_quantizer is None:
            y = self.quantize_output(site, block(x))
        else:
            y = self.quantize_output(site, *block(x, step))
        softmax = self.placement.sites.get(f"{site.name}_softmax")
        if softmax is not None and softmax.layer is None:
            y = keras.layers.Softmax(name=softmax.name, dtype="float32")(y)
            y = self.quantize_output(softmax, y)
        return y

    def _input_group(self, site, index=0):
        return self.placement.sites[site.inputs[index]].group

    def _quantized_operator(self, site, args):
        """A sum or a mean with a quantizer of its own."""
        options = {
            "bits": site.bits.activation_bits,
            "signed": site.signed,
            "name": site.name,
            "dtype": site.layer.dtype_policy,
        }
        groups = [self._input_group(site, index) for index in range(len(site.inputs))]
        if any(group not in self.steps for group in groups):
            raise ValueError(
                f"layer {site.name!r}: its inputs have no quantizer, but its output has; "
                "check the rules"
            )
        if isinstance(site.layer, keras.layers.Add):
            layer = QuantizedAdd(activation=site.activation, **options)
            args = (*args[0], *(self.steps[group] for group in groups))
        else:
            layer = QuantizedMean(
                keepdims=site.layer.keepdims,
                input_zero_point=self.zero_points[groups[0]],
                **options,
            )
            args = (args[0], self.steps[groups[0]])
        y, self.steps[site.group] = layer(*args)
        self.zero_points[site.group] = zero_point(layer.bits, layer.signed)
        return y

    def _average(self, site, x):
        """An average pooling, rounded to the grid of its input."""
        step = self.steps.get(site.group)
        if step is None:
            return copy_layer(site.layer, site.name)(x)
        layer = QuantizedAveragePooling2D(
            site.layer.pool_size,
            site.layer.strides,
            site.layer.padding,
            input_zero_point=self.zero_points[site.group],
            name=site.name,
        )
        return self.quantize_output(site, layer(x, step))

    def apply_input(self, node, x):
        """Quantizes an input of the model."""
        return self.quantize_output(self.placement.sites[node.name], x)

    def quantize_output(self, site, y, scale=None):
        """Puts the group's quantizer behind a site whose output needs rounding."""
        # Averages, and the number 6, are off the grid of the input that shares its scale.
        average = isinstance(site.layer, keras.layers.AveragePooling2D)
        on_grid = site.kind == "same_scale" and not average and site.activation != "relu6"
        if site.bits.activation_bits is None or on_grid:
            return y
        if site.group not in self.quantizers:
            name = f"{site.name}_quantize"
            if site.kind == "fixed":
                layer = Quantize(8, signed=False, step=SOFTMAX_STEP, name=name)
            else:
                layer = Quantize(site.bits.activation_bits, site.signed, name=name)
            self.quantizers[site.group] = layer
        quantizer = self.quantizers[site.group]
        self.zero_points[site.group] = zero_point(quantizer.bits, quantizer.signed)
        y, self.steps[site.group] = quantizer(y) if scale is None else quantizer(y, scale)
        return y

    def _block(self, site):
        if isinstance(site.layer, ReparamConv):
            kind, config = type(site.layer), site.layer.get_config()
        else:
            kind, config = stock_block(site.layer, site.batch_norm)
        config.update(
            name=site.name,
            weight_bits=site.bits.weight_bits,
            per_channel=site.bits.per_channel,
            bn_statistics=self.bn_statistics,
            activation=site.activation,
        )
        if self.restore_batch_norm is not None and not isinstance(site.layer, _DENSE):
            config["restore_batch_norm"] = self.restore_batch_norm
        elif _has_trained_root(site.layer):
            config["restore_batch_norm"] = True
        return kind.from_config(config)

    def copy_weights(self):
        """Copies the source layers' weights into the blocks."""
        for name, block in self.blocks.items():
            site = self.placement.sites[name]
            if isinstance(site.layer, ReparamConv):
                assign(block.expression.weights, site.layer.expression.weights)
                if block.restored is not None and _has_trained_root(site.layer):
                    assign(block.restored.weights, site.layer.restored.weights)
            else:
                copy_stock(site.layer, site.batch_norm, block)
            block.trainable = site.layer.trainable

    @property
    def fresh_roots(self):
        """Names of the blocks whose restored batch norm is new."""
        return {
            name
            for name, block in self.blocks.items()
            if block.restored is not None
            and not _has_trained_root(self.placement.sites[name].layer)
        }

    @property
    def true_moments(self):
        """Names of the blocks that were trained with exact moments."""
        sources = {name: self.placement.sites[name].layer for name in self.blocks}
        return {
            name
            for name, layer in sources.items()
            if not (getattr(layer, "merged", False) and layer.bn_statistics == "estimate")
        }


_QUANTIZED = (keras.layers.Add, keras.layers.GlobalAveragePooling2D)
_DENSE = (keras.layers.Dense, DenseBlock)


def _has_trained_root(layer):
    """Whether a source block computes with a restored batch norm already."""
    return isinstance(layer, ReparamConv) and layer.merged and layer.restored is not None


def _shared_values(graph, placement, batches):
    """Values, in the float model, of the tensors that share one quantizer."""
    sources, values = {}, {}
    for group in {site.group for site in placement.sites.values()}:
        origins = placement.origins(group)
        if len(origins) > 1:
            for site in origins:
                name = f"{origins[0].name}_quantize"
                sources[site.fused[-1] if site.fused else site.name] = name

    def observe(node, results):
        if node.name in sources:
            values.setdefault(sources[node.name], []).extend(results)

    if sources:
        run_batches(graph, batches, observe=observe)
    return values
