"""The folder of a run: where its products lie, and whose run it is."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from repq_tf.files import is_temporary
from repq_tf.train.errors import UserError
from repq_tf.train.run import text_files
from repq_tf.train.run.products import check_product
from repq_tf.train.settings import Settings

if TYPE_CHECKING:  # which takes seconds to import
    from repq_tf.keras_api import keras

FLOAT = "float.keras"
PREPARED = "prepared.keras"
FINETUNED = "finetuned.keras"
QUANTIZED_START = "quantized_start.keras"
QUANTIZED = "quantized.keras"
MERGED = "merged.keras"
FILE = "model.tflite"
FLOAT_FILE = "model_float.tflite"
METADATA = "model.json"
C_ARRAY = "model.h"
EVALUATION = "evaluation.json"
SUMMARY = "summary.html"
ANALYSIS = "analysis.html"
MEASUREMENT = "measurement.json"
WEIGHTS_PLOT = os.path.join("plots", "weights.png")
REPORT = "report.md"
REPORT_DATA = "report.json"
_SETTINGS = "settings.json"
_SECONDS = "seconds.json"
_STATE = "state_{}.npz"
_HISTORY = "history_{}.csv"

# What a file is made of; sources stand above what is made of them.
_MADE_OF = {
    PREPARED: {FLOAT},
    _STATE.format("finetune"): {PREPARED},
    _HISTORY.format("finetune"): {PREPARED},
    FINETUNED: {PREPARED},
    QUANTIZED_START: {FLOAT, FINETUNED},
    _STATE.format("qat"): {QUANTIZED_START},
    _HISTORY.format("qat"): {QUANTIZED_START},
    QUANTIZED: {QUANTIZED_START},
    MERGED: {QUANTIZED},
    EVALUATION: {FLOAT, FINETUNED, QUANTIZED},
    SUMMARY: {QUANTIZED},
    ANALYSIS: {QUANTIZED},
    FLOAT_FILE: {FLOAT},
    FILE: {QUANTIZED},
    METADATA: {FILE},
    C_ARRAY: {FILE},
    MEASUREMENT: {FLOAT_FILE, FILE},
    WEIGHTS_PLOT: {QUANTIZED_START, MERGED},
    REPORT: {EVALUATION, MEASUREMENT},
    REPORT_DATA: {EVALUATION, MEASUREMENT},
}


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Says of a damaged product what to do."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} Delete it to repeat its stage.") from error


class RunFolder:
    """Names and small records of a run.

    Args:
        path: The folder, `--workdir`.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(os.path.expanduser(path))
        self.logs = self.file("logs")
        self.plots = self.file("plots")
        self._read: dict[str, keras.Model] = {}

    def file(self, name: str) -> str:
        """Returns the path of a file in the folder."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """Says whether a product is there; products are written whole or not at all."""
        return os.path.exists(self.file(name))

    def check_products(self, names: Iterable[str]) -> None:
        """Makes sure that products are what was written.

        Raises:
            UserError: If one is damaged.
        """
        for name in names:
            with _repeatable():
                check_product(self.file(name))

    def remove_made_of(self, products: Iterable[str]) -> None:
        """Removes what was made of products, directly or not, before they are made anew.

        Args:
            products: Names of the products, which may be absent.
        """
        old = set(products)
        for name, sources in _MADE_OF.items():
            if sources & old:
                old.add(name)
                with contextlib.suppress(FileNotFoundError):
                    os.remove(self.file(name))

    def read_model(self, name: str) -> "keras.Model":
        """Returns a product that is a model, loaded once for readers, who do not change it."""
        if name not in self._read:
            self._read[name] = self.load_model(name)
        return self._read[name]

    def load_model(self, name: str) -> "keras.Model":
        """Loads a product that is a model."""
        from repq_tf.train.run import checkpoint  # which imports Keras

        with _repeatable():
            return checkpoint.load_model(self.file(name))

    def save_model(self, model: "keras.Model", name: str) -> None:
        """Writes a product that is a model, whole or not at all."""
        from repq_tf.train.run import checkpoint

        checkpoint.save_model(model, self.file(name))
        self._read.pop(name, None)

    def state(self, stage: str) -> str:
        """Returns the path of a training stage's checkpoint."""
        return self.file(_STATE.format(stage))

    def history(self, stage: str) -> str:
        """Returns the path of a training stage's CSV file."""
        return self.file(_HISTORY.format(stage))

    def check(self, settings: Settings) -> None:
        """Makes sure that a run with these settings may use the folder; changes nothing.

        Raises:
            UserError: If the folder cannot be written, belongs to a run with other settings,
                or holds something else.
        """
        if os.path.isdir(self.path):
            if os.path.exists(self.file(_SETTINGS)):
                self._check_same(settings)
            elif any(not is_temporary(name) for name in os.listdir(self.path)):
                raise UserError(
                    "--workdir must be a new or empty folder, or that of an earlier run."
                    f" Received: {self.path}, which holds other files"
                )
        existing = self.path
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(self.path)  # its name may be too long
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"--workdir must be a folder that can be written. Received: {self.path}"
                f" ({error.strerror}: {existing})"
            ) from error

    def _check_same(self, settings: Settings) -> None:
        found = settings.differences(text_files.read_json(self.file(_SETTINGS)))
        if found:
            lines = "".join(
                f"\n  {name}: {there!r} there, {here!r} now" for name, here, there in found
            )
            raise UserError(
                f"--workdir={self.path} holds a run with other settings, and nothing is"
                f" overwritten. Give another --workdir, or the same settings:{lines}"
            )

    def claim(self, settings: Settings) -> None:
        """Makes the folder and writes the settings into it, if that has not been done."""
        os.makedirs(self.path, exist_ok=True)
        if not os.path.exists(self.file(_SETTINGS)):
            text_files.write_json(self.file(_SETTINGS), settings.as_dict())

    def join(self, settings: Settings) -> None:
        """Makes sure that the folder is the one that the chief has claimed.

        Raises:
            UserError: If it is not, or the chief's settings are others.
        """
        if not os.path.exists(self.file(_SETTINGS)):
            raise UserError(
                "--workdir must lie on a file system that all machines share. Received:"
                f" {self.path}, which is empty here after the first worker has written to it"
            )
        self._check_same(settings)

    def seconds(self) -> dict[str, float]:
        """Returns stage -> seconds it took."""
        path = self.file(_SECONDS)
        return text_files.read_json(path) if os.path.exists(path) else {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Records how long a stage took."""
        text_files.write_json(self.file(_SECONDS), {**self.seconds(), stage: round(seconds, 3)})


def find_float_model(path: str | None, flag: str = "init_from") -> str | None:
    """Returns the `.keras` file that `--init_from` means, if it means one.

    Args:
        path: What the flag says.
        flag: Its name, or that of another one which names a float network.

    Raises:
        UserError: If there is no such file.
    """
    if path is None:
        return None
    if not os.path.isdir(path):
        if not path.endswith(".keras"):
            raise UserError(
                f"--{flag} must be a file whose name ends in .keras. Received: {path}"
            )
        return path
    file = os.path.join(path, FLOAT)
    if not os.path.isfile(file):
        raise UserError(
            f"--{flag}={path} is a folder without {FLOAT}: give the folder of a run"
            " whose float stage is done."
        )
    return file


def find_file(model: str) -> str:
    """Returns the `.tflite` file that `--model` of `upscale.py` means, whole if it is a run's.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = os.path.expanduser(model)
    if os.path.isdir(path):
        path = os.path.join(path, FILE)
    if not os.path.isfile(path):
        raise UserError(
            "--model must be a .tflite file or the folder of a run that has written"
            f" {FILE}. Received: {model}"
        )
    check_product(path)
    return path
