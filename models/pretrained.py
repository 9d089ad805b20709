"""Networks that come trained: weights, an integer `.tflite` file and a card of each.

`benchmarks/pretrained.py` writes the three files of a network into `models/weights/`, of a run
of the training program.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from repq_tf.files import replacing
from repq_tf.keras_api import keras, to_numpy, variable_path
from repq_tf.models.registry import find

FOLDER = Path(__file__).parent / "weights"


def list_weights(name: str) -> list[str]:
    """Returns the names of the data sets that a model comes trained on.

    Args:
        name: one of `list_models()`.

    Example:
        >>> repq_tf.models.list_weights("resnet8")
        ['cifar10']
    """
    find(name)
    cards = sorted(FOLDER.glob(f"{name}-*.json"))
    return [path.stem.removeprefix(f"{name}-") for path in cards]


def model_card(name: str, weights: str) -> dict[str, Any]:
    """Returns what is known of a trained model: what to give it, and what to expect.

    Args:
        name: the model, one of `list_models()`.
        weights: one of `list_weights(name)`.

    Returns:
        A dictionary: `labels` of the classes, in the order of the logits; `input_shape`;
        `pixels`, the `(mean, std)` of what the model takes, `(pixel - mean) / std`;
        `accuracy` on the `test_images` of `data`, of the `float` model and of the `file`;
        `command`, which trained it; `versions` of the software; `sha256` of the files.

    Example:
        >>> repq_tf.models.model_card("resnet8", "cifar10")["labels"][3]
        'cat'
    """
    return json.loads(pretrained_file(name, weights, "json").read_text(encoding="utf-8"))


def pretrained_tflite(name: str, weights: str) -> str:
    """Returns the path of a trained model's `.tflite` file, of int8 from input to logits.

    Args:
        name: the model, one of `list_models()`.
        weights: one of `list_weights(name)`.

    Example:
        >>> path = repq_tf.models.pretrained_tflite("resnet8", "cifar10")
    """
    return str(pretrained_file(name, weights, "tflite"))


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Gives a model the weights of a file that `save_weights` has written.

    Args:
        model: built as it was for training.
        path: the file.

    Raises:
        ValueError: its weights are others, by name or by shape; nothing is changed.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    there = {key: array.shape for key, array in arrays.items()}
    here = {key: tuple(variable.shape) for key, variable in _named(model)}
    if here != there:
        odd = sorted({*here.items()} ^ {*there.items()})[0]
        raise ValueError(
            "weights must be None for this width and these block_options; those of "
            f"{Path(path).stem} are for the width and the branches that {model.name} has by "
            f"default. Received: {len(here)} weights for {len(there)}; the first that differs "
            f"is {odd[0]!r} of shape {odd[1]}"
        )
    model.set_weights(list(arrays.values()))


def save_weights(model: keras.Model, path: Path) -> None:
    """Writes a model's weights as `load_weights` reads them, for any Keras and backend."""
    arrays: dict[str, Any] = {key: to_numpy(variable) for key, variable in _named(model)}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _named(model: keras.Model) -> Iterator[tuple[str, Any]]:
    """Weights, named by their number, their layer and what they are of it.

    What stands between the two, the branch, is in the paths of Keras 3 alone.
    """
    for number, variable in enumerate(model.weights):
        layer, *_, kind = variable_path(variable).split("/")
        yield f"{number:03} {layer} {kind}", variable


def pretrained_file(name: str, weights: str, suffix: str) -> Path:
    """The path of a file that a model comes with."""
    known = list_weights(name)
    if weights not in known:
        allowed = f"one of: {', '.join(known)}" if known else "None, no weights come with it"
        raise ValueError(f"weights of {name} must be {allowed}. Received: {weights!r}")
    return FOLDER / f"{name}-{weights}.{suffix}"
