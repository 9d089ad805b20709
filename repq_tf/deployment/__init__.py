"""Deployment: the merged model, the integer file, and the proof that they agree."""

__all__ = [
    "ParityReport",
    "check_parity",
    "export_c_array",
    "export_metadata",
    "export_tflite",
    "export_tflite_float",
    "merge",
    "with_container",
]


def __getattr__(name):
    """Returns a public name; all are imported then, since the program beside needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from repq_tf.deployment import exports

    globals().update({each: getattr(exports, each) for each in __all__})
    return globals()[name]
