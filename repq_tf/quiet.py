"""Silence where TensorFlow's libraries speak although they were asked not to."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

_STDERR = 2


@contextlib.contextmanager
def quiet(always: bool = False) -> Iterator[None]:
    """Drops what is written to the process's stderr meanwhile, where silence is asked for.

    It is where `TF_CPP_MIN_LOG_LEVEL` is 3; TensorFlow obeys that later, but not while it is
    imported, and LiteRT never. What was written is printed after all if the block fails.

    Args:
        always: whether silence is asked for in any case.
    """
    if not always and os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
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
