"""Models and the state of a training stage, in files that are whole or absent."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from repq_tf.files import keras_models as saving
from repq_tf.keras_api import Variable, keras, to_numpy, variable_path
from repq_tf.train.errors import UserError
from repq_tf.train.run.products import check_product, product, writing

_SEAL = "sha256"


def save_model(model: keras.Model, path: str) -> None:
    """Saves a model as `.keras`, whole or not at all."""
    with product(path) as temporary:
        model.save(temporary)


def load_model(path: str) -> keras.Model:
    """Loads a `.keras` file without compiling it, and without running code from it.

    Raises:
        UserError: If it is no `.keras` file, damaged, of layers that are not known here, or
            holds code.
    """
    try:
        if path.endswith(".keras"):
            check_product(path)
        return saving.load_model(path)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def save_state(
    path: str, model: keras.Model, optimizer: Any, progress: dict[str, Any], write: bool = True
) -> None:
    """Writes all that training needs to continue.

    Args:
        path: The `.npz` file to write.
        model: The model, with its seed generators.
        optimizer: Its optimizer, built.
        progress: Anything JSON can hold: epoch, history.
        write: Whether this worker writes the file; all of them must read the variables.
    """
    variables = [*model.variables, *optimizer.variables]
    arrays: dict[str, Any] = {f"v{k}": to_numpy(v) for k, v in enumerate(variables)}
    if not write:
        return
    record = {"variables": _names(model, optimizer), "progress": progress}
    arrays["record"] = np.array(json.dumps(record))
    arrays[_SEAL] = np.array(_digest_arrays(arrays))
    with writing(path) as temporary:
        np.savez(temporary, **arrays)


def load_state(path: str, model: keras.Model, optimizer: Any) -> dict[str, Any]:
    """Puts a saved state into a model and its optimizer.

    Args:
        path: A file written by `save_state` for the same model and optimizer.
        model: The model.
        optimizer: Its optimizer, built.

    Returns:
        The `progress` that was saved.

    Raises:
        UserError: If the file is damaged or was written for something else.
    """
    try:
        # A damaged file that NumPy opened itself stays open until it is collected.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}
        if str(found.pop(_SEAL)) != _digest_arrays(found):
            raise ValueError("its SHA-256 is not that of its content")
        record = json.loads(str(found["record"]))
        arrays = [found[f"v{k}"] for k in range(len(record["variables"]))]
    except Exception as error:  # zip, NumPy and JSON errors of many types end here
        raise UserError(
            f"The checkpoint {path} is damaged ({error}); delete it to repeat its stage."
        ) from error
    variables = [*model.variables, *optimizer.variables]
    there = [(n, a.shape) for n, a in zip(record["variables"], arrays, strict=True)]
    here = [
        (n, tuple(v.shape)) for n, v in zip(_names(model, optimizer), variables, strict=True)
    ]
    if here != there:
        raise UserError(
            f"The checkpoint {path} was written for another model or optimizer:"
            f" {_first_difference(there, here)}. Delete it to repeat its stage."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return record["progress"]


def copy_weights(source: keras.Model, target: keras.Model, origin: str) -> None:
    """Copies the weights of a model into another one of the same shapes.

    Args:
        source: The model to copy from.
        target: The model to copy to.
        origin: Where `source` comes from, for messages.

    Raises:
        UserError: If the weights differ in number, names or shapes, naming the first.
    """
    there, here = (
        [(_name(v), tuple(v.shape)) for v in model.weights] for model in (source, target)
    )
    if there != here:
        raise UserError(
            f"The weights of {origin} are not those of this model:"
            f" {_first_difference(there, here)}."
        )
    target.set_weights(source.get_weights())


def _digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of named arrays, with their types and shapes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _names(model: keras.Model, optimizer: Any) -> list[str]:
    """Names that do not depend on what else this process has made before."""
    return [*map(_name, model.variables), *("optimizer" for _ in optimizer.variables)]


def _name(variable: Variable) -> str:
    return variable_path(variable).split("/")[-1]


def _first_difference(
    there: Sequence[tuple[str, tuple[int, ...]]], here: Sequence[tuple[str, tuple[int, ...]]]
) -> str:
    for k, (a, b) in enumerate(zip(there, here, strict=False)):
        if a != b:
            return f"variable {k} is {a[0]} {a[1]} there and {b[0]} {b[1]} here"
    return f"{len(there)} variables there and {len(here)} here"
