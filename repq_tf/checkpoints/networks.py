"""Names of a network's layers: in which module of the authors' each layer's weights are.

A naming is a list of patterns of our layer names and templates of theirs. The fields of a
template are the numbers in our name: `stage` and `block`, `stage0` and `block0` counted
from 0, `depthwise` and `pointwise` as MobileOne counts the two blocks of a pair, and
`last`, the number of the layer behind all blocks.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

_BLOCK = r"stage(?P<stage>\d+)_block(?P<block>\d+)"

# Squeeze and excite and PReLU are inside the authors' blocks.
_INSIDE = re.compile(r"_(se|prelu)$")

# RepVGG, QARepVGG, OREPA-RepVGG and MobileOne.
_STAGES = {
    "stem": "stage0",
    _BLOCK: "stage{stage}.{block0}",
    f"{_BLOCK}_depthwise": "stage{stage}.{depthwise}",
    f"{_BLOCK}_pointwise": "stage{stage}.{pointwise}",
    "logits": "linear",
}

# The same networks in timm.
_TIMM = {
    "stem": "stem",
    _BLOCK: "stages.{stage0}.{block0}",
    f"{_BLOCK}_depthwise": "stages.{stage0}.{depthwise}",
    f"{_BLOCK}_pointwise": "stages.{stage0}.{pointwise}",
    "logits": "head.fc",
}

# ResNets in the repositories of DBB (ACNet's blocks too) and OREPA.
_RESNET = {
    "stem": "stage0.conv1",
    rf"{_BLOCK}_(?P<part>conv\d|shortcut)": "stage{stage}.{block0}.{part}",
    "logits": "linear",
}

# ResNet-18 and -34 in the repository of ACNet.
_ACNET_BASIC = {**_RESNET, "stem": "conv1"}

# ResNet-50 there.
_ACNET_BOTTLENECK = {
    "stem": "conv1",
    rf"{_BLOCK}_(?P<part>conv\d)": "stage{stage}.block{block0}.{part}",
    rf"{_BLOCK}_shortcut": "stage{stage}.projection",
    "logits": "fc",
}

_ECBSR = {
    "first": "backbone.0",
    r"block(?P<block>\d+)": "backbone.{block}",
    "last": "backbone.{last}",
}

NAMINGS = (_STAGES, _TIMM, _RESNET, _ACNET_BASIC, _ACNET_BOTTLENECK, _ECBSR)


def modules(naming: Mapping[str, str], layers: Collection[str]) -> dict[str, str]:
    """Their module of each layer that a naming knows.

    Args:
        naming: one of `NAMINGS`.
        layers: names of all layers.

    Returns:
        A dict from names of layers to names of modules.
    """
    last = 1 + sum(re.fullmatch(r"block\d+", name) is not None for name in layers)
    found = {}
    for layer in layers:
        for pattern, template in naming.items():
            if match := re.fullmatch(pattern, _INSIDE.sub("", layer)):
                found[layer] = template.format(**_fields(match), last=last)
    return found


def _fields(match: re.Match[str]) -> dict[str, Any]:
    fields: dict[str, Any] = match.groupdict()
    for name in ("stage", "block"):
        if name in fields:
            fields[name] = int(fields[name])
            fields[f"{name}0"] = fields[name] - 1
    if "block" in fields:
        fields["depthwise"] = 2 * fields["block"] - 2
        fields["pointwise"] = 2 * fields["block"] - 1
    return fields
