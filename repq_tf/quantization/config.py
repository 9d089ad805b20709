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


def apply_rules(rules, wholes, defaults):
    """The settings of each layer; later rules win.

    A rule for a layer that has become several is one for all their kernels and for the output
    of the last, since the others' are intermediate; None, floating point, is for all of them.

    Args:
        rules: pairs from `check_rules`.
        wholes: for the name of each layer there is, that of the layer it is a part of (its
            own, if it is whole), in topological order.
        defaults: `{name: LayerBits}`.

    Raises:
        ValueError: a rule matches no layer.
    """
    settings, last = dict(defaults), {whole: name for name, whole in wholes.items()}
    for pattern, values in rules:
        layers = fnmatch.filter(last, pattern)
        parts = [name for name in fnmatch.filter(wholes, pattern) if wholes[name] not in layers]
        if not layers and not parts:
            raise ValueError(
                f"rule {pattern!r} matches no layer that can be quantized; these are: "
                f"{', '.join(wholes)}"
            )
        for name, whole in wholes.items():
            if name in parts or whole in layers:
                given = dict(values)
                if whole in layers and name != last[whole] and given.get("activation_bits"):
                    del given["activation_bits"]
                settings[name] = dataclasses.replace(settings[name], **given)
    return settings
