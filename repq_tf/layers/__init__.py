"""Layers: the base of re-parameterized convolutions, and the blocks."""

from repq_tf.layers.acnet import ACBlock
from repq_tf.layers.plain import ConvBlock, ConvBNBlock, DenseBlock
from repq_tf.layers.quantize import Quantize, QuantizedAdd, QuantizedMean
from repq_tf.layers.reparam_conv import ReparamConv
from repq_tf.layers.repvgg import RepVGGBlock

__all__ = [
    "ACBlock",
    "ConvBNBlock",
    "ConvBlock",
    "DenseBlock",
    "Quantize",
    "QuantizedAdd",
    "QuantizedMean",
    "RepVGGBlock",
    "ReparamConv",
]
