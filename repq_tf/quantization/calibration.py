"""Initial values of a quantized model from images: statistics and step sizes.

Layer by layer, on the features as the quantized layers before make them.
"""

import math

import numpy as np

from repq_tf.branches import BatchNorm
from repq_tf.keras_api import ops
from repq_tf.layers import Quantize, ReparamConv
from repq_tf.quantization.execution import as_batches, run_batches
from repq_tf.quantization.graph import read_graph
from repq_tf.quantization.statistics import (
    CalibrationReading,
    feature_readings,
    neutralise_dead_channels,
    reestimate_root,
)

_SAMPLES = 1 << 18


def calibrate_block(block, calls, fresh_root, true_moments):
    """Sets a quantized block's statistics, weight steps and restored batch norm.

    Args:
        block: a quantized `ReparamConv`.
        calls: its calls, one for each batch.
        fresh_root: whether its restored batch norm is new and starts as the identity.
        true_moments: whether the float block was trained with exact moments.
    """
    readings = feature_readings(block, calls)
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
    mean, variance = reestimate_root(block, readings, affine)
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
            layer.activation_quantizer.initialize(_samples(values, layer.name))

    run_batches(read_graph(model), batches, visit)


def _samples(values, name):
    """Samples of all the tensors that share a scale, as many of each."""
    shapes = sorted({tuple(value.shape[1:]) for value in values})
    limit = _SAMPLES // len(shapes)
    return np.concatenate(
        [
            _sample([value for value in values if tuple(value.shape[1:]) == shape], name, limit)
            for shape in shapes
        ]
    )


def _sample(values, name, limit):
    """At most `limit` of the values of one shape, evenly spread, and the largest one."""
    flat = np.concatenate([ops.convert_to_numpy(v).astype(np.float32).ravel() for v in values])
    if not np.isfinite(flat).all():
        raise ValueError(f"layer {name!r}: its input holds NaN or infinity on calibration data")
    stride = -(-len(flat) // limit)
    # In step with an axis, it would see one channel, or one column, alone.
    while math.gcd(stride, len(flat)) > 1:
        stride += 1
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
