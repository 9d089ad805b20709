"""The table of models by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

from repq_tf.keras_api import keras

# What builds a model, of its own arguments.
ModelFunction: TypeAlias = Callable[..., keras.Model]
TASKS = ("classification", "super_resolution")


@dataclasses.dataclass(frozen=True)
class _Model:
    """A line of the table.

    Attributes:
        function: builds the model.
        plain: name of its plain twin.
        task: what it is for.
    """

    function: ModelFunction
    plain: str
    task: str


_MODELS: dict[str, _Model] = {}


def register(
    function: ModelFunction, plain: str | None = None, task: str = "classification"
) -> ModelFunction:
    """Enters a function that builds a model under its name.

    Args:
        function: `function(classes, input_shape, width, **block_options)`, or for super
            resolution `function(scale, channels, input_shape, **block_options)`.
        plain: name of its plain twin: the same network of ordinary convolutions. None for
            a network that is plain itself.
        task: "classification" or "super_resolution".

    Returns:
        The function.
    """
    name = function.__name__
    if name in _MODELS:
        raise ValueError(f"name must be new. Received: {name!r}, which is registered")
    _MODELS[name] = _Model(function, plain or name, _check_task(task))
    return function


def list_models(task: str | None = None) -> list[str]:
    """Returns the names of all models, sorted.

    Args:
        task: "classification" or "super_resolution" for the models of one task.

    Example:
        >>> repq_tf.models.list_models("super_resolution")[:2]
        ['ecbsr_m10c16', 'ecbsr_m10c16_plain']
    """
    if task is None:
        return sorted(_MODELS)
    _check_task(task)
    return sorted(name for name, model in _MODELS.items() if model.task == task)


def build(name: str, *arguments: Any, **options: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        name: one of `list_models()`.
        *arguments: of the function of that name, whose documentation lists them:
            `repq_tf.models.resnet18` has `classes`, `input_shape` and `width`.
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
    return _line(name).plain


def find(name: str) -> ModelFunction:
    """Returns the function that builds a model.

    Args:
        name: one of `list_models()`.
    """
    return _line(name).function


def _line(name: str) -> _Model:
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(f"name must be one of: {', '.join(list_models())}. Received: {name!r}")
    return _MODELS[name]


def _check_task(task: str) -> str:
    if task not in TASKS:
        raise ValueError(f"task must be one of: {', '.join(TASKS)}. Received: {task!r}")
    return task
