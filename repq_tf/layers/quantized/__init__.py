"""Quantized layers: operators on stored tensors, as the integer runtime computes them."""

from repq_tf.layers.quantized.activations import QuantizedLeakyReLU, QuantizedPReLU
from repq_tf.layers.quantized.average_pooling import QuantizedAveragePooling2D
from repq_tf.layers.quantized.gates import QuantizedHardSigmoid, QuantizedSigmoid
from repq_tf.layers.quantized.lookup import QuantizedLookup, QuantizedTanh
from repq_tf.layers.quantized.mean import QuantizedMean
from repq_tf.layers.quantized.pairs import QuantizedAdd, QuantizedMultiply, QuantizedSubtract
from repq_tf.layers.quantized.quantize import Quantize
from repq_tf.layers.quantized.softmax import QuantizedSoftmax
from repq_tf.layers.quantized.unit_normalization import QuantizedUnitNormalization
from repq_tf.layers.quantized.up_sampling import QuantizedUpSampling2D

__all__ = [
    "Quantize",
    "QuantizedAdd",
    "QuantizedAveragePooling2D",
    "QuantizedHardSigmoid",
    "QuantizedLeakyReLU",
    "QuantizedLookup",
    "QuantizedMean",
    "QuantizedMultiply",
    "QuantizedPReLU",
    "QuantizedSigmoid",
    "QuantizedSoftmax",
    "QuantizedSubtract",
    "QuantizedTanh",
    "QuantizedUnitNormalization",
    "QuantizedUpSampling2D",
]
