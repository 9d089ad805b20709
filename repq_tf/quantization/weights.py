"""What the weights of a quantized kernel would take, compressed."""

import numpy as np

from repq_tf.keras_api import Array, ops
from repq_tf.layers import ReparamConv

_BYTE = 8


def bits_of_a_weight(block: ReparamConv, kernel: Array) -> float:
    """The mean bits of a quantized kernel's weights, those of its wide taps and codes too.

    Args:
        block: whose kernel is quantized.
        kernel: what it merges into.
    """
    assert block.weight_bits is not None and block.weight_quantizer is not None
    bytes_more = 0
    if block.weight_levels == "cluster":
        channels = block.weight_quantizer.channels or 1
        bytes_more = (2**block.weight_bits - 1) * channels  # 0 need not be stored
    taps = kernel.shape[-1] if block.wide_tap else 0
    more = (_BYTE - block.weight_bits) * taps + _BYTE * bytes_more
    return block.weight_bits + more / kernel.size


def entropy_of_weights(block: ReparamConv, kernel: Array) -> float:
    """The entropy of a quantized kernel's levels in bits, the mean of what has its own step.

    No code of single weights takes less.

    Args:
        block: whose kernel is quantized.
        kernel: what it merges into.
    """
    quantizer = block.weight_quantizer
    assert quantizer is not None
    kernel = np.asarray(kernel, "float32")
    levels = ops.convert_to_numpy(quantizer.kernel_integers(ops.convert_to_tensor(kernel)))
    rows = levels.reshape(-1, quantizer.channels or levels.size).T
    rows = rows if quantizer.channels else rows.reshape(1, -1)
    return float(np.mean([_entropy(row) for row in rows]))


def _entropy(levels: Array) -> float:
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0
