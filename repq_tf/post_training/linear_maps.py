"""Layers with a kernel: whose weights scales enter."""

import dataclasses

import numpy as np

from repq_tf.branches import Convolution, NumpyReading
from repq_tf.graphs import Tensor
from repq_tf.keras_api import Array, Layer
from repq_tf.kernels import AffineKernel
from repq_tf.layers import ReparamConv
from repq_tf.layers.stock import StockConvolution
from repq_tf.reparameterization.sources import target


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A layer with a kernel, and the batch norm behind it: what scales enter.

    Attributes:
        name: of the layer.
        inputs: the channels that it reads, `(in_channels,)` of the streams' numbers.
        outputs: those that it makes.
        node: the layer, or its expression.
        norm: the BatchNormalization right behind it, or None.
        stored: the tensor behind its batch norm and its activation; None inside a layer.
        padded: whether zeros enter beside its input.
    """

    name: str
    inputs: Array
    outputs: Array
    node: ReparamConv | StockConvolution
    norm: Layer | None
    stored: Tensor | None
    padded: bool

    @property
    def affine(self) -> AffineKernel:
        """What it is in inference, the batch norm included, in float64."""
        if self.norm is not None:
            return target(self.node, self.norm).merged().affine
        return self.node.merge(NumpyReading())

    def magnitudes(self) -> Array:
        """The largest of each filter's taps: `(inputs of a group, groups, outputs of one)`."""
        affine = self.affine
        largest = np.abs(affine.kernel).max(axis=(0, 1))
        return np.reshape(largest, (len(largest), affine.groups, -1))

    def ranges(self, made: bool) -> Array:
        """The largest magnitude of the weights that make each channel, or that read it."""
        largest = self.magnitudes()
        return largest.max(axis=0).ravel() if made else largest.max(axis=2).T.ravel()

    @property
    def plain(self) -> Convolution | StockConvolution | None:
        """What has its kernel and its bias, if that is all there is."""
        if self.stored is None or self.norm is not None:
            return None
        if isinstance(self.node, StockConvolution):
            return self.node
        rooted = self.node.restored is not None and self.node.uses_merged_kernel
        branch = self.node.expression
        return branch if isinstance(branch, Convolution) and not rooted else None
