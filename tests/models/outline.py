"""Networks without values: their layers and shapes can be read, and building them is quick."""

import functools

import keras

from repq_tf import models


@functools.cache
def outline(name, **arguments):
    """The network whose variables have shapes but no values."""
    with keras.StatelessScope(initialize_variables=False):
        model = models.build(name, **arguments)
    # Keras notes such variables, and would give them values with the next network's.
    keras.utils.clear_session(free_memory=False)
    return model


def blocks(model):
    """The re-parameterized convolutions."""
    return [layer for layer in model.layers if hasattr(layer, "merge")]
