"""repq_tf: quantization-aware training of re-parameterized networks, on merged kernels."""

from repq_tf import branches, layers, quantizers
from repq_tf.deployment import merge
from repq_tf.quantization import quantization_table, quantize, reestimate_batch_norm

__all__ = [
    "branches",
    "layers",
    "merge",
    "quantization_table",
    "quantize",
    "quantizers",
    "reestimate_batch_norm",
]
