"""Writing files that are whole or absent."""

import contextlib
import os

_TEMPORARY = ".writing-"


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary name with the suffix of `path`, and renames it to `path` at the end.

    If the block fails or the process is killed, whatever was at `path` stays as it was.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, _TEMPORARY + name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def is_temporary(name):
    """Says whether a file of this name was being written when its process was killed."""
    return name.startswith(_TEMPORARY)


def write_atomically(path, content):
    """Writes bytes, whole or not at all.

    Args:
        path: the file; its folder must exist.
        content: bytes.

    Raises:
        OSError: the folder is missing or cannot be written; what was at `path` stays.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
