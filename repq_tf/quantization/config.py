"""Bits for each layer: defaults, and rules that override them by layer name."""

import dataclasses
import fnmatch

from repq_tf.quantizers import ACTIVATION_BITS, BITS, check_bits

_KEYS = ("weight_bits", "activation_bits", "per_channel")


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """How one layer is quantized.

    Attributes:
        weight_bits: of its kernel; None leaves it in floating point.
        activation_bits: of its output; None leaves it in floating point.
        per_channel: whether each output channel's kernel has a step of its own.
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    per_channel: bool = True


def check_rules(rules):
    """Returns rules as a list of `(pattern, settings)`; raises ValueError on a bad one.

    Args:
        rules: a dict or a sequence of pairs, `pattern -> settings`: a shell-style
            pattern of layer names and a dict with some of `weight_bits`,
            `activation_bits` and `per_channel`.
    """
    pairs = list(rules.items()) if isinstance(rules, dict) else [tuple(rule) for rule in rules]
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], dict):
            raise ValueError(
                f"rules must be pairs of a name pattern and a dict. Received: {pair!r}"
            )
        pattern, settings = pair
        unknown = set(settings) - set(_KEYS)
        if unknown:
            raise ValueError(
                f"rule {pattern!r}: settings must be among {_KEYS}. Received: {sorted(unknown)}"
            )
        for key, allowed in (("weight_bits", BITS), ("activation_bits", ACTIVATION_BITS)):
            if settings.get(key) is not None:
                check_bits(settings[key], f"rule {pattern!r}: {key}", allowed)
    return pairs


def apply_rules(rules, names, defaults):
    """The settings of each layer; later rules win.

    Args:
        rules: pairs from `check_rules`.
        names: the layer names there are.
        defaults: `{name: LayerBits}`.

    Raises:
        ValueError: a rule matches no layer.
    """
    settings = dict(defaults)
    for pattern, values in rules:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ValueError(
                f"rule {pattern!r} matches no layer that can be quantized; these are: "
                f"{', '.join(names)}"
            )
        for name in matched:
            settings[name] = dataclasses.replace(settings[name], **values)
    return settings
