"""Silence where TensorFlow's libraries speak although they were asked not to."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_STDERR = 2


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what is written to the process's stderr meanwhile, where silence is asked for.

    It is where `TF_CPP_MIN_LOG_LEVEL` is 3; TensorFlow obeys that later, but not while it is
    imported, and LiteRT never. What was written is printed after all if the block fails.
    """
    if not _asked_for():
        yield
        return
    try:
        real = os.dup(_STDERR)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), _STDERR)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(real, caught.read())
            raise
        finally:
            os.dup2(real, _STDERR)
            os.close(real)


def _asked_for() -> bool:
    """Whether TensorFlow was asked for silence; `python -m repq_tf...` asks for it here."""
    if sys.argv[:1] == ["-m"]:  # Python is still looking for the command's module
        os.environ.setdefault(_LEVEL, "0" if "--verbose=2" in sys.argv else "3")
    return os.environ.get(_LEVEL) == "3"
