"""Bits and ranges for each layer: defaults, and rules that override them by layer name."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from repq_tf.arguments import boolean, check_bits
from repq_tf.arithmetic import ACTIVATION_BITS, BITS
from repq_tf.quantizers import (
    check_levels_beside_tap,
    check_range,
    check_weight_levels,
    check_wide_tap,
)

_OF_WEIGHTS = ("weight_bits", "weight_range", "per_channel", "weight_levels", "wide_tap")
_OF_ACTIVATIONS = ("activation_bits", "activation_range")
_KEYS = (*_OF_WEIGHTS, *_OF_ACTIVATIONS)
# A pattern of layer names, and settings: as users write them, and checked.
Rules: TypeAlias = dict[str, dict[str, Any]] | Iterable[tuple[str, dict[str, Any]]]
CheckedRules: TypeAlias = Sequence[tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """How one layer is quantized.

    Attributes:
        weight_bits: of its kernel; None leaves it in floating point.
        activation_bits: of its output; None leaves it in floating point.
        per_channel: whether each output channel's kernel has a step of its own.
        weight_range: the range rule that sets the kernel's steps.
        activation_range: that of its output's.
        weight_levels: "uniform"; or "odd" or "cluster" for kernels of at most 4 bits.
        wide_tap: whether the weight of an identity has the bounds of int8, where it can;
            "auto": where that at least halves the kernel's error.
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    per_channel: bool = True
    weight_range: str = "min_error"
    activation_range: str = "min_error"
    weight_levels: str = "uniform"
    wide_tap: bool | str = False

    def with_weights_of(self, other: "LayerBits") -> "LayerBits":
        """These settings of the output, with the other's of the weights."""
        weights = {key: getattr(other, key) for key in _OF_WEIGHTS}
        return dataclasses.replace(self, **weights)


def check_rules(rules: Rules | None) -> CheckedRules:
    """Returns rules as a list of `(pattern, settings)`; raises ValueError on a bad one.

    Args:
        rules: None, a dict or a sequence of pairs, `pattern -> settings`: a shell-style
            pattern of layer names and a dict with some of `weight_bits`, `weight_range`,
            `per_channel`, `weight_levels`, `wide_tap`, `activation_bits` and
            `activation_range`.
    """
    pairs: Any = rules.items() if isinstance(rules, dict) else () if rules is None else rules
    pairs = list(pairs) if isinstance(pairs, Iterable) else [pairs]
    for pair in pairs:
        whole = isinstance(pair, list | tuple) and len(pair) == 2
        if not whole or not isinstance(pair[0], str) or not isinstance(pair[1], dict):
            raise ValueError(
                f"rules must be pairs of a name pattern and a dict. Received: {pair!r}"
            )
        pattern, settings = pair
        unknown = set(settings) - set(_KEYS)
        if unknown:
            raise ValueError(
                f"rule {pattern!r}: settings must be among {_KEYS}. "
                f"Received: {sorted(map(str, unknown))}"
            )
        for key, allowed in (("weight_bits", BITS), ("activation_bits", ACTIVATION_BITS)):
            if settings.get(key) is not None:
                check_bits(settings[key], f"rule {pattern!r}: {key}", allowed)
        for key in ("weight_range", "activation_range"):
            if key in settings:
                check_range(settings[key], f"rule {pattern!r}: {key}")
        if "weight_levels" in settings:
            check_weight_levels(settings["weight_levels"], f"rule {pattern!r}: weight_levels")
        if "wide_tap" in settings:
            check_wide_tap(settings["wide_tap"], f"rule {pattern!r}: wide_tap")
        if "per_channel" in settings:
            boolean(settings["per_channel"], f"rule {pattern!r}: per_channel")
    return pairs


def apply_rules(
    rules: CheckedRules,
    wholes: Mapping[str, str],
    defaults: Mapping[str, LayerBits],
    weighted: set[str],
    firsts: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, LayerBits]:
    """The settings of each layer; later rules win.

    A rule for an expanded layer sets all kernels but only the last output, since the others
    are intermediate; None, floating point, applies to all.

    Args:
        rules: pairs from `check_rules`.
        wholes: for the name of each layer there is, that of the layer it is a part of (its
            own, if it is whole), in topological order.
        defaults: `{name: LayerBits}`.
        weighted: the names of the layers that have kernels.
        firsts: for the name of each later call of a layer, that of its first one, by which
            patterns find it, too.

    Raises:
        ValueError: a rule matches no layer, or sets weights and matches none that has any, or
            settings of a layer do not go together.
    """
    settings, last = dict(defaults), {whole: name for name, whole in wholes.items()}
    known = {name: {name, firsts.get(name, name)} for name in wholes}
    for name, whole in wholes.items():
        known.setdefault(whole, {whole}).add(wholes[firsts.get(name, name)])

    def found(names: Iterable[str], pattern: str) -> list[str]:
        return [name for name in names if fnmatch.filter(known[name], pattern)]

    for pattern, values in rules:
        layers = found(last, pattern)
        parts = [name for name in found(wholes, pattern) if wholes[name] not in layers]
        if not layers and not parts:
            raise ValueError(
                f"rule {pattern!r} matches no layer that can be quantized; these are: "
                f"{', '.join(wholes)}"
            )
        matched = [name for name in wholes if name in parts or wholes[name] in layers]
        of_weights = [key for key in _OF_WEIGHTS if values.get(key) is not None]
        if of_weights and not weighted.intersection(matched):
            raise ValueError(
                f"rule {pattern!r}: {' and '.join(of_weights)} must be for layers with weights."
                f" Received: {', '.join(matched)}, without any"
            )
        later = [n for n in matched if n in weighted and firsts.get(n, n) not in matched]
        if of_weights and later:
            raise ValueError(
                f"rule {pattern!r}: {' and '.join(of_weights)} must be for all calls of a "
                f"layer, by the name of its first one, {firsts[later[0]]!r}. Received: "
                f"{', '.join(later)}"
            )
        for name in matched:
            given, whole = dict(values), wholes[name]
            if whole in layers and name != last[whole]:
                for key in _OF_ACTIVATIONS:
                    if given.get(key) is not None:
                        del given[key]
            settings[name] = dataclasses.replace(settings[name], **given)
    for name in wholes:
        if name in weighted:
            value = settings[name]
            check_levels_beside_tap(value.weight_levels, value.wide_tap, f"layer {name!r}: ")
    return settings
