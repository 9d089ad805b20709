"""Blocks: re-parameterizations, each a class that declares its expression."""

from repq_tf.layers.blocks.acnet import ACBlock
from repq_tf.layers.blocks.dbb import DiverseBranchBlock
from repq_tf.layers.blocks.ecb import ECB
from repq_tf.layers.blocks.expandnet import ExpandNet
from repq_tf.layers.blocks.mobileone import MobileOneBlock
from repq_tf.layers.blocks.orepa import OREPABlock, OREPARepVGGBlock, OREPAStem
from repq_tf.layers.blocks.plain import ConvBlock, ConvBNBlock, DenseBlock, DenseBNBlock
from repq_tf.layers.blocks.qarepvgg import QARepVGGBlock
from repq_tf.layers.blocks.repopt import CSLABlock
from repq_tf.layers.blocks.repvgg import RepVGGBlock
from repq_tf.layers.blocks.transposed import ConvTransposeBlock, ConvTransposeBNBlock
from repq_tf.layers.blocks.weight_norm import DiracConv, WeightNormConv

__all__ = [
    "ACBlock",
    "CSLABlock",
    "ConvBNBlock",
    "ConvBlock",
    "ConvTransposeBNBlock",
    "ConvTransposeBlock",
    "DenseBNBlock",
    "DenseBlock",
    "DiracConv",
    "DiverseBranchBlock",
    "ECB",
    "ExpandNet",
    "MobileOneBlock",
    "OREPABlock",
    "OREPARepVGGBlock",
    "OREPAStem",
    "QARepVGGBlock",
    "RepVGGBlock",
    "WeightNormConv",
]
