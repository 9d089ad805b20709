"""Model configurations of tf_keras, told as Keras 3 tells them.

Keras 3 serializes each call of a layer as `{"args": ..., "kwargs": ...}` with tensors
marked as such; tf_keras as a list of `[layer, call, output, kwargs]`, one for each tensor
of the first argument, which share their kwargs; further positional arguments are among
these.
"""

import inspect
import itertools
from typing import Any

from repq_tf.keras_api import Config, Layer


def calls(layer: Layer, inbound_nodes: list) -> list[Config]:
    """A layer's calls in the format of Keras 3.

    Args:
        layer: the layer.
        inbound_nodes: of its entry in the `get_config()` of a tf_keras model.
    """
    names = list(inspect.signature(layer.call).parameters)[1:]
    return [_call(node, names) for node in inbound_nodes]


def ends(structure: Any) -> Any:
    """A model's `input_layers` or `output_layers`; a single one does not stand in a list."""
    single = isinstance(structure, list | tuple) and len(structure) == 1
    return list(structure[0]) if single else structure


def _call(node: Any, names: list[str]) -> Config:
    sources = list(node.values()) if isinstance(node, dict) else list(node)
    kwargs = {key: _value(value) for key, value in sources[0][3].items()}
    first = [_tensor(source[:3]) for source in sources]
    if isinstance(node, dict):
        args: list[Any] = [dict(zip(node, first, strict=True))]
    else:
        args = first if len(first) == 1 else [first]
    for name in itertools.takewhile(kwargs.__contains__, names):
        args.append(kwargs.pop(name))
    return {"args": args, "kwargs": kwargs}


def _value(value: Any) -> Any:
    """A keyword argument: a tensor, a structure with tensors, or a plain value."""
    if isinstance(value, list | tuple):
        if _is_tensor(value):
            return _tensor(value)
        return [_value(item) for item in value]
    return value


def _is_tensor(value: Any) -> bool:
    kinds = [type(item) for item in value]
    return kinds == [str, int, int]


def _tensor(history: Any) -> Config:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": list(history)}}
