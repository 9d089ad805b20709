"""The quantized stages by way of TensorFlow Model Optimization, which is imported when used."""

import importlib
from typing import Any

import repq_tf
from repq_tf.keras_api import keras
from repq_tf.train.errors import UserError


def check_importable() -> None:
    """Imports TFMOT, which also makes its layers known to Keras.

    Raises:
        UserError: If that is not possible here.
    """
    try:
        importlib.import_module("repq_tf.tfmot")
    except ImportError as error:
        raise UserError(f"--quantizer=tfmot is not possible here: {error}") from error


def quantize(model: keras.Model, verbose: bool, **options: Any) -> keras.Model:
    """Quantizes a float model as `repq_tf.quantize` does, in TFMOT's wrappers.

    Args:
        model: The float model.
        verbose: Whether to print what was quantized.
        **options: Those of `repq_tf.tfmot.RepQScheme`.
    """
    import tensorflow_model_optimization

    from repq_tf.tfmot import RepQScheme

    api = tensorflow_model_optimization.quantization.keras
    quantized = api.quantize_apply(api.quantize_annotate_model(model), RepQScheme(**options))
    if verbose:
        print(repq_tf.quantization_table(unwrap(quantized)))
    return quantized


def check_quantizable(model: keras.Model, **bits: int) -> None:
    """Raises the error with which `quantize` refuses a network, without images.

    Args:
        model: The float model, which may be untrained.
        **bits: `weight_bits` and `activation_bits`.

    Raises:
        ValueError: A layer cannot be quantized; it is named.
    """
    quantize(model, verbose=False, **bits)


def unwrap(model: keras.Model) -> keras.Model:
    """Returns the equal model of our own layers."""
    from repq_tf.tfmot import from_tfmot

    return from_tfmot(model)
