"""Finding the quantizers of a model."""

from repq_tf.keras_api import keras
from repq_tf.quantizers.lsq_layer import LSQ


def find(model: keras.Model) -> dict[str, LSQ]:
    """Returns the quantizers of a model by name.

    Args:
        model: a quantized Keras model.

    Returns:
        `{"LAYER/weight": LSQ, "LAYER/activation": LSQ}` in the order of the layers.
    """
    found = {}
    for layer in model.layers:
        for kind in ("weight", "activation"):
            quantizer = getattr(layer, f"{kind}_quantizer", None)
            if quantizer is not None:
                found[f"{layer.name}/{kind}"] = quantizer
    return found
