"""The options of layers, for the `**options` of their subclasses and of networks."""

from typing import TypeAlias, TypedDict

from repq_tf.keras_api import Identifier, LayerOptions, Pair

Padding: TypeAlias = str | int | Pair | tuple[Pair, Pair]


class TrainingOptions(TypedDict, total=False):
    """The options of `ReparamConv` that say how it trains, which a network may have as a whole.

    `ReparamConv` documents them.
    """

    merged: bool
    bn_statistics: str
    restore_batch_norm: bool | None
    weight_bits: int | None
    per_channel: bool
    step_gradient: str
    momentum: float
    epsilon: float
    synchronized: bool
    sample_fraction: float
    literal_estimate: bool
    oabn_k: float | None
    kernel_regularizer: Identifier | None


class BlockOptions(TrainingOptions, LayerOptions, total=False):
    """Those of `ReparamConv` but for its filters, its kernel's size and its initializer."""

    strides: int | Pair
    padding: Padding
    groups: int
    activation: Identifier | None


class ReparamConvOptions(BlockOptions, total=False):
    """Those of `ReparamConv` but for its filters and its kernel's size."""

    kernel_initializer: Identifier


class QuantizeOptions(LayerOptions, total=False):
    """Those of `Quantize` but for its bits and its sign."""

    step: float | None


class GridOptions(QuantizeOptions, total=False):
    """Those of `Quantize`."""

    bits: int
    signed: bool
