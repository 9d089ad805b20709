"""repq_tf: quantization-aware training of re-parameterized networks, on merged kernels.

The public names are those of `api`, which is imported when the first of them is asked for: so
programs of this package refuse a bad argument before TensorFlow is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from repq_tf import opening
from repq_tf.version import __version__  # noqa: F401

if TYPE_CHECKING:
    from repq_tf.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Returns a public name."""
    if name == "__all__" or not name.startswith("__"):
        api = importlib.import_module("repq_tf.api")
        if name in ("__all__", *api.__dict__.get("__all__", ())):
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the public names."""
    return importlib.import_module("repq_tf.api").__all__


opening.open_with_keras()
