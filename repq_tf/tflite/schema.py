"""LiteRT's schema of the file format, loaded when first asked for."""

import functools
import importlib
from typing import Any


@functools.cache
def _generated() -> Any:
    return importlib.import_module("ai_edge_litert.schema_py_generated")


def __getattr__(name: str) -> Any:
    """A class or an enumeration of the schema."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(_generated(), name)
