"""Models that another package trained, as the equal models of our layers."""

from collections.abc import Callable

from repq_tf.graphs.graph import Graph
from repq_tf.graphs.reading import read_graph
from repq_tf.keras_api import keras

# Packages whose models have an equal one, and our module that knows it.
_MODULES = {"tensorflow_model_optimization": "repq_tf.tfmot"}
_CONVERSIONS: dict[str, Callable[[keras.Model], keras.Model]] = {}


def register_conversion(package: str, convert: Callable[[keras.Model], keras.Model]) -> None:
    """Makes `read_native` read the models of another package.

    Args:
        package: the top-level name of the package that the layers' classes come from.
        convert: a function from such a model to the equal one of our layers.
    """
    _CONVERSIONS[package] = convert


def read_native(model: keras.Model) -> Graph:
    """Reads a model as `read_graph` does; of what another package trained, its equal.

    Args:
        model: a Functional or Sequential Keras model.

    Returns:
        A `Graph` of Keras's layers and ours.

    Raises:
        ValueError: the model cannot be read; or its layers are those of a package whose
            models have an equal one, and the module that knows it is not imported.
    """
    graph = read_graph(model)
    for node in graph.nodes.values():
        package = type(node.layer).__module__.partition(".")[0]
        if package in _CONVERSIONS:
            return read_graph(_CONVERSIONS[package](model))
        if package in _MODULES:
            raise ValueError(
                f"layer {node.name!r} ({type(node.layer).__name__}) is one of {package}; "
                f"import {_MODULES[package]} first"
            )
    return graph
