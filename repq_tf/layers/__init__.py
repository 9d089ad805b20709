"""Layers: the base of re-parameterized convolutions, and the blocks."""

from repq_tf.layers.acnet import ACBlock
from repq_tf.layers.activations import QuantizedLeakyReLU, QuantizedPReLU
from repq_tf.layers.average_pooling import QuantizedAveragePooling2D
from repq_tf.layers.dbb import DiverseBranchBlock
from repq_tf.layers.depth_to_space import DepthToSpace
from repq_tf.layers.ecb import ECB
from repq_tf.layers.expandnet import ExpandNet
from repq_tf.layers.gates import QuantizedHardSigmoid, QuantizedSigmoid
from repq_tf.layers.mobileone import MobileOneBlock
from repq_tf.layers.orepa import OREPABlock, OREPARepVGGBlock, OREPAStem
from repq_tf.layers.plain import ConvBlock, ConvBNBlock, DenseBlock
from repq_tf.layers.qarepvgg import QARepVGGBlock
from repq_tf.layers.quantize import Quantize, QuantizedAdd, QuantizedMean, QuantizedMultiply
from repq_tf.layers.reparam_conv import ReparamConv
from repq_tf.layers.repopt import CSLABlock
from repq_tf.layers.repvgg import RepVGGBlock
from repq_tf.layers.softmax import QuantizedSoftmax
from repq_tf.layers.squeeze_excite import SqueezeExcite
from repq_tf.layers.up_sampling import QuantizedUpSampling2D
from repq_tf.layers.weight_norm import DiracConv, WeightNormConv

__all__ = [
    "ACBlock",
    "CSLABlock",
    "ConvBNBlock",
    "ConvBlock",
    "DenseBlock",
    "DepthToSpace",
    "DiracConv",
    "DiverseBranchBlock",
    "ECB",
    "ExpandNet",
    "MobileOneBlock",
    "OREPABlock",
    "OREPARepVGGBlock",
    "OREPAStem",
    "QARepVGGBlock",
    "Quantize",
    "QuantizedAdd",
    "QuantizedAveragePooling2D",
    "QuantizedHardSigmoid",
    "QuantizedLeakyReLU",
    "QuantizedMean",
    "QuantizedMultiply",
    "QuantizedPReLU",
    "QuantizedSigmoid",
    "QuantizedSoftmax",
    "QuantizedUpSampling2D",
    "RepVGGBlock",
    "ReparamConv",
    "SqueezeExcite",
    "WeightNormConv",
]
