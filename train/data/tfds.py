"""Finding and preparing sets of TensorFlow Datasets (TFDS)."""

import difflib
import os
from typing import Any

import keras

from repq_tf.quiet import quiet
from repq_tf.train.errors import UserError
from repq_tf.train.settings.checks import check_data_dir


def find_builder(name: str, data_dir: str | None) -> Any:
    """Returns TFDS's builder of a set."""
    check_data_dir(data_dir)
    try:
        with quiet():
            import tensorflow as tf
            import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"--dataset={name} is read with TFDS, which needs tensorflow and"
            f" tensorflow-datasets. Without them use digits or folder:PATH. ({error})"
        ) from error
    if keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # their memory is the backend's
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders()
        asked = name.split("/")[0].split(":")[0].lower()
        near = difflib.get_close_matches(asked, ["digits", *known], n=5)
        raise UserError(
            "--dataset must be digits, folder:PATH, or a TFDS name such as cifar10, mnist,"
            f" imagenet2012. Received: {name!r}{_folder(name)}. Similar names:"
            f" {', '.join(near) or 'none'}. TFDS"
            f" {tfds.__version__} knows {len(known)}; tfds.list_builders() lists them."
        ) from error
    except (ValueError, AssertionError) as error:  # unknown configuration or version
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--dataset={name}{_folder(name)} is not accepted by TFDS: {reason}"
        ) from error


def _folder(name: str) -> str:
    """What to say of the name of a set that is a folder's."""
    return f", a folder (folder:{name} reads its images)" if os.path.isdir(name) else ""


def prepare(builder: Any, name: str) -> None:
    """Makes sure that the set is on disk."""
    try:
        builder.download_and_prepare()
    except Exception as error:  # anything from a missing network to a full disk
        raise UserError(
            f"--dataset={name} is not prepared in {builder.data_dir} and TFDS could not"
            f" prepare it: {type(error).__name__}: {error}"
        ) from error
