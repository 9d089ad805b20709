"""What of a layer is frozen: the flags of its parts, which its own configuration lacks.

A layer whose parts can be frozen alone lists them in `trainable_parts`: `{attribute: layers}`,
those that hold others first, since a flag that is set is set for all that a layer holds.
"""

from repq_tf.branches import BatchNorm, Branch
from repq_tf.keras_api import Config, Layer, trained_weights

_KEY = "trainable_parts"


def parts(expression: Branch) -> list[Layer]:
    """The nodes of an expression and their statistics, those that hold others first."""
    found = []
    for node in reversed(list(expression.walk())):
        found.append(node)
        if isinstance(node, BatchNorm):
            found.append(node.statistics)
    return found


def is_frozen(layer: Layer) -> bool:
    """Whether a layer has weights and none of them is trained."""
    return bool(layer.weights) and not trained_weights(layer)


def frozen_note(layer: Layer) -> str:
    """Which parts of a layer are frozen: "", "all", or their names."""
    if not layer.weights:
        return ""
    if not layer.trainable:
        return "all"
    found = [part for found in _parts(layer).values() for part in found if part.weights]
    frozen = [part for part in found if not part.trainable]
    if found and len(frozen) == len(found):
        return "all"
    said = [part.statistics for part in frozen if isinstance(part, BatchNorm)]
    return ", ".join(part.name for part in frozen if part not in said)


def copy_trainable(source: Layer, target: Layer) -> None:
    """Freezes of a layer what is frozen of another, in the parts that both have."""
    if target.trainable != source.trainable:  # it would reach parts that are not listed
        target.trainable = source.trainable
    _set_flags(target, _flags(source))


def freeze_new_weights(layer: Layer) -> None:
    """Makes the weights of a layer that was just built what its flags and its parts' say."""
    for found in _parts(layer).values():
        flags = [layer.trainable and part.trainable for part in found]
        for part, flag in zip(found, flags, strict=True):
            part.trainable = flag


def build_config(layer: Layer, config: Config) -> Config:
    """The configuration of a built layer, with the flags of parts that differ from its own."""
    flags = _flags(layer)
    same = all(flag == layer.trainable for found in flags.values() for flag in found)
    return config if same else {**config, _KEY: flags}


def read_build_config(layer: Layer, config: Config) -> None:
    """Sets the flags that stand in a configuration."""
    _set_flags(layer, config.get(_KEY, {}))


def _parts(layer: Layer) -> dict[str, list[Layer]]:
    return getattr(layer, _KEY, {})


def _flags(layer: Layer) -> dict[str, list[bool]]:
    return {name: [part.trainable for part in found] for name, found in _parts(layer).items()}


def _set_flags(layer: Layer, flags: dict[str, list[bool]]) -> None:
    for name, found in _parts(layer).items():
        if name in flags:
            for part, flag in zip(found, flags[name], strict=True):
                part.trainable = flag
