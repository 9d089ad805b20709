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
    weight_levels: str
    wide_tap: bool
    dampening: float
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
    mirrored: bool


class GridOptions(QuantizeOptions, total=False):
    """Those of `Quantize`."""

    bits: int
    signed: bool


class NetworkOptions(TrainingOptions, total=False):
    """Those that a network of `repq_tf.models` hands to its blocks, which document them.

    Some are of a few classes of blocks alone.
    """

    kernel_initializer: Identifier
    branches: int
    custom_l2: float
    custom_l2_denominator: bool
    expansion: str
    gamma_initializer: Identifier
    identity: bool
    identity_scale: float
    internal_channels: int | None
    multiplier: int
    rate: int
    scales: float
    single_init: bool
    trainable_scales: bool
    use_batch_norm: bool
    use_bias: bool
    variant: str
