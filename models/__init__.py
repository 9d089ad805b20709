"""Models: functions that build Keras networks of re-parameterized blocks, and their table.

Every name in `list_models()` is a function here: `repq_tf.models.ac_resnet18(classes=10)`.
"""

from repq_tf.models import (  # noqa: F401  they fill the table
    mlperf_tiny,
    mobileone,
    repopt,
    repvgg,
    resnet,
)
from repq_tf.models.ecbsr import ecbsr
from repq_tf.models.pretrained import list_weights, model_card, pretrained_tflite
from repq_tf.models.registry import ModelFunction, build, find, list_models, plain_twin
from repq_tf.models.repvgg_sr import repvgg_sr

__all__ = [
    "build",
    "ecbsr",
    "list_models",
    "list_weights",
    "model_card",
    "plain_twin",
    "pretrained_tflite",
    "repvgg_sr",
    *list_models(),
]


def __getattr__(name: str) -> ModelFunction:
    """The function of a registered model."""
    try:
        return find(name)
    except ValueError as error:
        raise AttributeError(f"module {__name__!r} has no {name!r}; {error}") from None


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *list_models()})
