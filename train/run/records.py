"""What a training stage leaves to read: a CSV file, TensorBoard scalars and pictures."""

import csv
import io
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.train.errors import UserError
from repq_tf.train.run import text_files
from repq_tf.train.run.products import add_sum, check_product
from repq_tf.train.run.run_folder import RunFolder

Row: TypeAlias = dict[str, float]  # what an epoch gave, by name


class Records:
    """The epochs of a stage so far, as CSV and TensorBoard files.

    Both are written anew from the given rows when a stage continues, so an interruption
    neither loses nor doubles a row. Pictures stay where they are, in a folder of their own.

    Args:
        run: The `run_folder.RunFolder`.
        stage: Name of the stage.
        history: List of rows, name -> number, one per epoch; `"epoch"` is one of the names.
        scalars: For each of these epochs, further name -> number for TensorBoard.
    """

    def __init__(
        self, run: RunFolder, stage: str, history: Sequence[Row], scalars: Sequence[Row]
    ) -> None:
        self._path = run.history(stage)
        self._rows = list(history)
        folder = os.path.join(run.logs, stage)
        shutil.rmtree(folder, ignore_errors=True)
        self._events = _Events(folder)
        self._pictures: _Events | None = None
        self._picture_folder = f"{folder}_pictures"
        self._write()
        for row, extra in zip(history, scalars, strict=True):
            self._events.add({**row, **extra})

    def add(self, row: Row, extra: Row) -> None:
        """Adds an epoch."""
        self._rows.append(row)
        self._write()
        self._events.add({**row, **extra})

    def add_pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Adds what a model does after an epoch.

        Args:
            epoch: Number of epochs trained.
            pictures: Name -> uint8 image `(h, w, c)`.
        """
        if pictures:
            self._pictures = self._pictures or _Events(self._picture_folder)
            self._pictures.add_pictures(epoch, pictures)

    def close(self) -> None:
        """Closes the event files; the CSV file is a product now."""
        self._events.close()
        if self._pictures:
            self._pictures.close()
        if self._rows:
            add_sum(self._path)

    def _write(self) -> None:
        if self._rows:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(self._rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)
            text_files.write_text(self._path, text.getvalue())


def read_history(path: str) -> dict[str, list[float]]:
    """Returns the columns of a history file, name -> list of numbers; empty without one."""
    if not os.path.exists(path):
        return {}
    check_product(path)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}


class _Events:
    """A TensorBoard event file; TensorBoard's own writer does not need TensorFlow."""

    def __init__(self, folder: str) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = folder
        self._writer = EventFileWriter(folder)

    def add(self, values: Row) -> None:
        """Writes the values of one epoch."""
        self._write(
            values["epoch"],
            [
                {"tag": name, "simple_value": value}
                for name, value in values.items()
                if name != "epoch"
            ],
        )

    def add_pictures(self, epoch: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes the pictures of one epoch."""
        self._write(
            epoch, [{"tag": name, "image": _encoded(p)} for name, p in pictures.items()]
        )

    def _write(self, epoch: float, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        event = Event(wall_time=time.time(), step=int(epoch), summary=summary)
        try:
            self._writer.add_event(event)
            self._writer.flush()
        except Exception as error:  # an OSError, or TensorFlow's own where that is installed
            raise UserError(
                f"{self._folder} cannot be written: {error}. The checkpoint is whole, and the"
                " same command goes on from there."
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def _encoded(picture: np.ndarray) -> Any:
    """A picture as TensorBoard keeps it: a PNG file."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width, channels = picture.shape
    file = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if channels == 1 else picture).save(file, "PNG")
    return Summary.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=file.getvalue()
    )
