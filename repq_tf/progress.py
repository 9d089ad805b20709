"""Progress of long work, for people who wait."""

import sys
import time

from repq_tf.keras_api import keras

_PATIENCE = 2.0


class Progress:
    """A Keras progress bar that appears when work takes more than two seconds.

    Args:
        title: what is being done.
        total: how many parts there are; None where nobody knows.
        unit: what a part is called.
        verbose: whether to show anything.

    Example:
        >>> progress = Progress("calibrating", total=len(layers), unit="layer")
        >>> for layer in layers:
        ...     progress.advance()
    """

    def __init__(self, title: str, total: int | None, unit: str, verbose: bool = True) -> None:
        self.title = title
        self.verbose = verbose
        self.done = 0
        self._start = time.monotonic()
        self._shown = False
        # In a log file, every update is a line of its own.
        interval = 0.1 if sys.stdout.isatty() else 10.0
        self._bar = keras.utils.Progbar(total, interval=interval, unit_name=unit)

    def advance(self, parts: int = 1) -> None:
        """Counts finished parts."""
        self.done += parts
        if not self.verbose or time.monotonic() - self._start < _PATIENCE:
            return
        if not self._shown:
            print(self.title, flush=True)
            self._shown = True
        self._bar.update(self.done)
