"""Writing files that are whole or absent."""

import contextlib
import os
from collections.abc import Iterator

_TEMPORARY = ".writing-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields a temporary name with the suffix of `path`, and renames it to `path` at the end.

    If the block fails or the process is killed, whatever was at `path` stays as it was. Where
    `path` is a symbolic link, the file that it points to is replaced.
    """
    target = os.path.realpath(path)
    name = _TEMPORARY + os.path.basename(os.path.abspath(path))
    temporary = os.path.join(os.path.dirname(target), name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.filename == temporary:  # which the user has never heard of
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def is_temporary(name: str) -> bool:
    """Says whether a file of this name was being written when its process was killed."""
    return name.startswith(_TEMPORARY)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes bytes, whole or not at all.

    Args:
        path: the file; its folder must exist.
        content: bytes.

    Raises:
        OSError: the folder is missing or cannot be written; what was at `path` stays.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
