"""Reading `.keras` files."""

import os

from repq_tf.keras_api import keras


def load_model(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a `.keras` file without compiling it, and without running code from it.

    Args:
        path: the file.

    Returns:
        The model.

    Raises:
        ValueError: it is no `.keras` file, damaged, of layers that are not known here, or holds
            code.
    """
    path = str(path)
    if not path.endswith(".keras"):  # older formats can hold code that loading runs
        raise ValueError(f"{path} cannot be loaded: its name must end in .keras.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zip, HDF5, JSON and layer errors all end here
        if "safe_mode" in str(error):
            raise ValueError(
                f"{path} is refused: it holds Python code (a Lambda layer), which would run"
                " when the file is loaded."
            ) from error
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{path} cannot be loaded as a .keras model: {reason[0]}") from error
