"""Data-driven initial values: batch-norm statistics, dead channels and step sizes.

Everything is done layer by layer, on the features as the quantized layers before
have made them, in inference mode.
"""

import numpy as np

from repq_tf.branches import (
    BatchNorm,
    FeatureReading,
    Reading,
    estimated_moments,
    exact_moments,
)
from repq_tf.keras_api import keras, ops
from repq_tf.layers import DenseBlock, Quantize, ReparamConv
from repq_tf.quantization.graph import evaluate, read_graph

# A channel whose variance is this small a part of epsilon is a constant: what it adds to
# the normalized features is below 1 % of gamma.
_DEAD = 1e-4
_SAMPLES = 1 << 18


def as_batches(data, model, batch_size=128):
    """Returns calibration images as a list of float32 arrays `(batch, ...)`.

    Args:
        data: an array of images, or an iterable of batches (arrays, or tuples whose
            first item is the images).
        model: the model that will get them; shapes are checked.
        batch_size: used to cut an array.
    """
    if hasattr(data, "shape"):
        array = np.asarray(data)
        data = [array[k : k + batch_size] for k in range(0, len(array), batch_size)]
    elif data is None or isinstance(data, str | bytes | int | float):
        raise ValueError(
            "calibration data must be an array of images or an iterable of batches. "
            f"Received: {data!r}"
        )
    batches = []
    for batch in data:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        batches.append(np.asarray(ops.convert_to_numpy(images), np.float32))
    if not batches or not all(len(batch) for batch in batches):
        raise ValueError("calibration data must not be empty")
    expected = tuple(model.input_shape[1:])
    for batch in batches:
        fits = len(batch.shape) == len(expected) + 1 and all(
            want in (None, got) for want, got in zip(expected, batch.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"calibration data must be images of shape {expected}. Received: "
                f"{tuple(batch.shape[1:])}"
            )
        if not np.isfinite(batch).all():
            raise ValueError("calibration data must be finite; it holds NaN or infinity")
    return batches


def run_batches(graph, batches, visit=None, observe=None):
    """Runs a graph on batches, layer by layer, in inference.

    Args:
        graph: the graph of a model.
        batches: list of arrays.
        visit: `visit(node, calls)`, called before a node runs, with the list of
            `(args, kwargs)` it is about to get, one for each batch.
        observe: `observe(node, results)`, called after it has run, with the list of
            its first outputs.

    Returns:
        The outputs: a list, one item for each batch.
    """

    def pick(structure, index):
        if isinstance(structure, _Batches):
            return structure[index]
        if isinstance(structure, list | tuple):
            return type(structure)(pick(item, index) for item in structure)
        if isinstance(structure, dict):
            return {key: pick(item, index) for key, item in structure.items()}
        return structure

    def apply(node, args, kwargs):
        calls = [(pick(args, k), pick(kwargs, k)) for k in range(len(batches))]
        if visit is not None:
            visit(node, calls)
        results = []
        for call_args, call_kwargs in calls:
            result = node.layer(*call_args, **{**call_kwargs, **_inference(node.layer)})
            results.append(result if isinstance(result, tuple | list) else (result,))
        columns = tuple(_Batches(column) for column in zip(*results, strict=True))
        if observe is not None:
            observe(node, columns[0])
        return columns

    def feed(node):
        tensors = _Batches(ops.convert_to_tensor(batch) for batch in batches)
        if observe is not None:
            observe(node, tensors)
        return tensors

    return evaluate(graph, feed, apply)


class _Batches(list):
    """One value for each batch."""


def _inference(layer):
    takes_training = isinstance(
        layer,
        ReparamConv | Quantize | keras.layers.BatchNormalization | keras.layers.Dropout,
    )
    return {"training": False} if takes_training else {}


def reestimate_batch_norm(model, data, batch_size=128):
    """Sets all moving statistics to the moments of the given images.

    Layer by layer, with quantizers as they are, so that every batch norm is given the
    moments of the features that it sees in inference. For blocks of repq_tf (float, merged
    or quantized; `bn_statistics="estimate"` by its estimate) and Keras's own
    BatchNormalization. Nothing else changes.

    Args:
        model: a Functional or Sequential Keras model.
        data: an array of images, or an iterable of batches; a few hundred images do.
        batch_size: used to cut an array.

    Example:
        >>> repq_tf.reestimate_batch_norm(model, images[:512])
    """
    graph = read_graph(model)

    def visit(node, calls):
        if isinstance(node.layer, ReparamConv):
            reestimate_block(node.layer, calls)
        elif isinstance(node.layer, keras.layers.BatchNormalization):
            mean, variance = combine([_axis_moments(node.layer, args[0]) for args, _ in calls])
            node.layer.moving_mean.assign(mean)
            node.layer.moving_variance.assign(variance)

    run_batches(graph, as_batches(data, model, batch_size), visit)


def _axis_moments(layer, x):
    axis = layer.axis % x.ndim
    axes = tuple(k for k in range(x.ndim) if k != axis)
    return len(x), ops.mean(x, axis=axes), ops.var(x, axis=axes)


def combine(moments):
    """Moments of all batches from `(count, mean, variance)` of each, in float64."""
    counts = np.asarray([count for count, _, _ in moments], np.float64)[:, None]
    means = np.stack([ops.convert_to_numpy(mean) for _, mean, _ in moments]).astype(np.float64)
    variances = np.stack([ops.convert_to_numpy(v) for _, _, v in moments]).astype(np.float64)
    share = counts / counts.sum()
    mean = (share * means).sum(axis=0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(axis=0)


class CalibrationReading(Reading):
    """The reading that sets the moving statistics of each batch norm as it is merged.

    Args:
        readings: a `FeatureReading` for each batch.
        neutralise: whether channels of (almost) no variance get gamma 0, which keeps the
            function: a constant channel is beta after normalization.
        keep_function: whether a batch norm with `estimate` gets gamma and beta such
            that it does with the estimated moments what it did with the exact ones.
    """

    def __init__(self, readings, neutralise=False, keep_function=False):
        self.readings = readings
        self.neutralise = neutralise
        self.keep_function = keep_function

    def inside(self, outer, inner):
        """The reading of a smaller kernel."""
        return self._derive([reading.inside(outer, inner) for reading in self.readings])

    def after(self, prefix, last):
        """The reading of a chain's link."""
        return self._derive([reading.after(prefix, last) for reading in self.readings])

    def _derive(self, readings):
        return type(self)(readings, self.neutralise, self.keep_function)

    def moments(self, batch_norm, affine):
        """Measures, sets and returns the moving statistics."""
        statistics = batch_norm.statistics
        estimated = statistics.mode == "estimate"
        if not estimated or self.keep_function or self.neutralise:
            self._set(statistics, self._exact(affine))
        if self.neutralise:
            neutralise_dead_channels(batch_norm)
        if estimated:
            exact = batch_norm.gain_and_shift()
            self._set(statistics, self._estimated(statistics, affine))
            if self.keep_function:
                gain, shift = exact
                mean, variance = self.moving(statistics)
                batch_norm.gamma.assign(gain * ops.sqrt(variance + batch_norm.epsilon))
                batch_norm.beta.assign(shift + mean * gain)
        return self.moving(statistics)

    def _set(self, statistics, moments):
        mean, variance = combine(moments)
        statistics.moving_mean.assign(mean)
        statistics.moving_variance.assign(variance)

    def _exact(self, affine):
        return [
            (len(r.x), *exact_moments(r.x, r.composed(affine), r.strides, r.window))
            for r in self.readings
        ]

    def _estimated(self, statistics, affine):
        return [
            (len(r.x), *estimated_moments(r, r.composed(affine), statistics.literal_estimate))
            for r in self.readings
        ]


def neutralise_dead_channels(batch_norm):
    """Gives channels whose moving variance is about 0 a gamma of 0 and a variance of 1.

    Such a channel is a constant, which a batch norm turns into beta; its gain
    `gamma / sqrt(epsilon)`, in the hundreds, would only spoil the merged kernel.
    """
    statistics = batch_norm.statistics
    dead = ops.convert_to_tensor(statistics.moving_variance) < _DEAD * batch_norm.epsilon
    batch_norm.gamma.assign(ops.where(dead, 0.0, batch_norm.gamma))
    statistics.moving_variance.assign(ops.where(dead, 1.0, statistics.moving_variance))


def _readings(block, calls):
    readings = []
    for args, _ in calls:
        x = ops.cast(args[0], "float32")
        if isinstance(block, DenseBlock):
            x = ops.expand_dims(x, (1, 2))
        readings.append(FeatureReading(x, block.window(x.shape[1:3]), block.strides))
    return readings


def _root_moments(block, readings, affine):
    return combine(
        [(len(r.x), *exact_moments(r.x, affine, r.strides, r.window)) for r in readings]
    )


def reestimate_block(block, calls):
    """Re-estimates the moving statistics of one block on its inputs."""
    readings = _readings(block, calls)
    affine = block.inner.merge(CalibrationReading(readings))
    if block.root is not None:
        _set_root(block, readings, affine)


def _set_root(block, readings, affine):
    kernel = affine.kernel
    if block.weight_quantizer is not None:
        kernel = block.weight_quantizer(kernel)
    affine = type(affine)(kernel, affine.bias, affine.groups)
    mean, variance = _root_moments(block, readings, affine)
    block.root.statistics.moving_mean.assign(mean)
    block.root.statistics.moving_variance.assign(variance)
    return mean, variance


def calibrate_block(block, calls, fresh_root, true_moments):
    """Sets a quantized block's statistics, weight steps and restored batch norm.

    Args:
        block: a quantized `ReparamConv`.
        calls: its calls, one for each batch.
        fresh_root: whether its restored batch norm is new and starts as the identity.
        true_moments: whether the float block was trained with exact moments.
    """
    readings = _readings(block, calls)
    for node in block.merged_batch_norms:
        neutralise_dead_channels(node)
    affine = block.inner.merge(
        CalibrationReading(readings, neutralise=True, keep_function=true_moments)
    )
    if not np.isfinite(ops.convert_to_numpy(affine.kernel)).all():
        raise ValueError(f"layer {block.name!r}: its merged kernel holds NaN or infinity")
    if block.weight_quantizer is not None:
        block.weight_quantizer.initialize(affine.kernel)
    if block.root is None:
        return
    mean, variance = _set_root(block, readings, affine)
    if fresh_root:
        block.root.gamma.assign(np.sqrt(variance + block.root.epsilon))
        block.root.beta.assign(mean)
    elif isinstance(block.expression, BatchNorm):
        neutralise_dead_channels(block.root)


def calibrate(model, batches, fresh_roots, true_moments, shared_values):
    """Calibrates a quantized model, layer by layer.

    Args:
        model: the quantized model.
        batches: list of arrays.
        fresh_roots: names of blocks whose restored batch norm is new.
        true_moments: names of blocks trained with exact moments.
        shared_values: for a `Quantize` layer that serves several tensors, their
            values in the float model: `{layer name: list of arrays}`.
    """
    calibrated = set()

    def visit(node, calls):
        layer = node.layer
        if isinstance(layer, ReparamConv):
            calibrate_block(layer, calls, layer.name in fresh_roots, layer.name in true_moments)
        elif isinstance(layer, Quantize) and layer.fixed_step is None:
            if layer.name in calibrated:
                return
            calibrated.add(layer.name)
            values = shared_values.get(layer.name) or [layer.values(*args) for args, _ in calls]
            layer.activation_quantizer.initialize(_sample(values, layer.name))

    run_batches(read_graph(model), batches, visit)


def _sample(values, name):
    """At most `_SAMPLES` of the values, evenly spread, and the largest one."""
    flat = np.concatenate([ops.convert_to_numpy(v).astype(np.float32).ravel() for v in values])
    if not np.isfinite(flat).all():
        raise ValueError(f"layer {name!r}: its input holds NaN or infinity on calibration data")
    stride = -(-len(flat) // _SAMPLES)
    return np.append(flat[::stride], flat[np.abs(flat).argmax()])


def clip_rates(model, data):
    """The share of values that each quantizer clips, on the given images.

    Args:
        model: a quantized model.
        data: an array of images, or an iterable of batches.

    Returns:
        `{"LAYER/weight": rate, "LAYER/activation": rate}`.
    """
    rates = {}

    def visit(node, calls):
        layer = node.layer
        if isinstance(layer, ReparamConv) and layer.weight_quantizer is not None:
            kernel = layer.inner.merge().kernel
            rates[f"{layer.name}/weight"] = float(layer.weight_quantizer.clip_rate(kernel))
        elif isinstance(layer, Quantize):
            values = [layer.values(*args) for args, _ in calls]
            found = [layer.activation_quantizer.clip_rate(value) for value in values]
            rates[f"{layer.name}/activation"] = float(np.mean([float(f) for f in found]))

    run_batches(read_graph(model), as_batches(data, model), visit)
    return rates
