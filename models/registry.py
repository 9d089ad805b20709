"""The functions that build the models, by name."""

from collections.abc import Callable
from typing import Any, TypeAlias

from repq_tf.keras_api import keras
from repq_tf.model_names import MODELS, ModelName, check_task, list_models

__all__ = ["build", "find", "list_models", "plain_twin", "register"]

# What builds a model, of its own arguments.
ModelFunction: TypeAlias = Callable[..., keras.Model]

_FUNCTIONS: dict[str, ModelFunction] = {}


def register(
    function: ModelFunction, plain: str | None = None, task: str = "classification"
) -> ModelFunction:
    """Enters a function that builds a model under its name.

    Args:
        function: `function(classes, input_shape, width, **block_options)`, or for super
            resolution `function(scale, channels, input_shape, **block_options)`.
        plain: name of its plain twin: the same network of ordinary convolutions. None for
            a network that is plain itself, or one that `model_names` lists.
        task: "classification" or "super_resolution".

    Returns:
        The function.
    """
    name = function.__name__
    if name in _FUNCTIONS:
        raise ValueError(f"name must be new. Received: {name!r}, which is registered")
    MODELS.setdefault(name, ModelName(plain or name, check_task(task)))
    _FUNCTIONS[name] = function
    return function


def build(name: str, *arguments: Any, **options: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        name: one of `list_models()`.
        *arguments: of the function of that name, whose documentation lists them:
            `repq_tf.models.resnet18` has `classes`, `input_shape`, `width` and `weights`.
        **options: likewise.

    Returns:
        A Functional `keras.Model`.

    Example:
        >>> model = repq_tf.models.build("ac_resnet18", classes=10, input_shape=(32, 32, 3))
    """
    return find(name)(*arguments, **options)


def plain_twin(name: str) -> str:
    """Returns the name of a model's plain twin: what the Plain baseline trains.

    Args:
        name: one of `list_models()`.

    Example:
        >>> repq_tf.models.plain_twin("ac_resnet18")
        'resnet18'
    """
    return MODELS[_known(name)].plain


def find(name: str) -> ModelFunction:
    """Returns the function that builds a model.

    Args:
        name: one of `list_models()`.
    """
    return _FUNCTIONS[_known(name)]


def _known(name: str) -> str:
    if not isinstance(name, str) or name not in _FUNCTIONS:
        raise ValueError(f"name must be one of: {', '.join(list_models())}. Received: {name!r}")
    return name
