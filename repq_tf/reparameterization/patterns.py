"""The patterns that convolutions can be given, and the settings that choose one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from repq_tf.arguments import name_patterns, positive
from repq_tf.layers import (
    ECB,
    ACBlock,
    CSLABlock,
    DiracConv,
    DiverseBranchBlock,
    ExpandNet,
    MobileOneBlock,
    OREPABlock,
    OREPARepVGGBlock,
    QARepVGGBlock,
    ReparamConv,
    RepVGGBlock,
    WeightNormConv,
)

PATTERNS = {
    "acnet": ACBlock,
    "csla": CSLABlock,
    "dbb": DiverseBranchBlock,
    "dirac": DiracConv,
    "ecb": ECB,
    "expandnet": ExpandNet,
    "mobileone": MobileOneBlock,
    "orepa": OREPABlock,
    "orepa_repvgg": OREPARepVGGBlock,
    "qarepvgg": QARepVGGBlock,
    "repvgg": RepVGGBlock,
    "weight_norm": WeightNormConv,
}
# Blocks that are something else than repeated 1x1 convolutions when the kernel is 1x1.
_POINTWISE = (DiracConv, ExpandNet, MobileOneBlock, OREPABlock, WeightNormConv)
_STOCK_OPTIONS = (
    "activation dtype filters groups kernel_size kernel_regularizer name padding strides "
    "trainable"
).split()


@dataclasses.dataclass(frozen=True)
class Settings:
    """What layers become.

    Attributes:
        block: a subclass of `ReparamConv`.
        layers: shell-style patterns of layer names.
        options: options of the block.
        min_kernel_size: smaller kernels, on either axis, are left.
        initialize: see `reparameterize`.
    """

    block: type
    layers: tuple = ("*",)
    options: dict = dataclasses.field(default_factory=dict)
    min_kernel_size: int = 1
    initialize: Callable | None = None


_KEYS = ("pattern", "layers", "options", "min_kernel_size", "initialize")


def read_settings(settings: str | type[ReparamConv] | dict[str, Any]) -> Settings:
    """Returns checked `Settings` of a pattern's name, a block class or a dict."""
    given: dict[str, Any] = settings if isinstance(settings, dict) else {"pattern": settings}
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        raise ValueError(f"settings must be among {_KEYS}. Received: {unknown}")
    block = _block(given.get("pattern"))
    layers = name_patterns(given.get("layers", "*"), "layers")
    options = given.get("options") or {}
    if not isinstance(options, dict):
        raise ValueError(f"options must be a dict. Received: {options!r}")
    taken = sorted(set(options) & set(_STOCK_OPTIONS))
    if taken:
        raise ValueError(f"options {taken} come from the layers that are converted")
    initialize = given.get("initialize")
    if initialize is not None and not callable(initialize):
        raise ValueError(f"initialize must be a function. Received: {initialize!r}")
    smallest = 1 if block in _POINTWISE or block not in PATTERNS.values() else 2
    smallest = positive(given.get("min_kernel_size", smallest), "min_kernel_size")
    return Settings(block, layers, dict(options), smallest, initialize)


def _block(pattern: Any) -> type[ReparamConv]:
    if isinstance(pattern, type) and issubclass(pattern, ReparamConv):
        return pattern
    if isinstance(pattern, str) and pattern in PATTERNS:
        return PATTERNS[pattern]
    raise ValueError(
        f"pattern must be one of {', '.join(PATTERNS)}, or a subclass of ReparamConv. "
        f"Received: {pattern!r}"
    )
