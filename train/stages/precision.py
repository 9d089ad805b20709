"""Training in half precision; what is kept on disk is always a float32 model."""

import contextlib
from collections.abc import Iterator

from repq_tf.keras_api import LEGACY, keras


@contextlib.contextmanager
def policy(mixed_precision: str) -> Iterator[None]:
    """Sets Keras's dtype policy for the block.

    Args:
        mixed_precision: `"none"`, `"bfloat16"` or `"float16"`.
    """
    if LEGACY:
        get, put = keras.mixed_precision.global_policy, keras.mixed_precision.set_global_policy
    else:
        get, put = keras.config.dtype_policy, keras.config.set_dtype_policy
    before = get()
    put(_policy_name(mixed_precision))
    try:
        yield
    finally:
        put(before)


def convert(model: keras.Model, mixed_precision: str) -> keras.Model:
    """Returns an uncompiled copy of a model that computes in the given precision.

    Args:
        model: A Functional model.
        mixed_precision: `"none"`, `"bfloat16"` or `"float16"`.
    """
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] != "InputLayer":
            layer["config"]["dtype"] = _policy_name(mixed_precision)
    with policy(mixed_precision):
        converted = type(model).from_config(config)
    converted.set_weights(model.get_weights())
    return converted


def _policy_name(mixed_precision: str) -> str:
    return "float32" if mixed_precision == "none" else f"mixed_{mixed_precision}"
