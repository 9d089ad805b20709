"""Checks of paths that users give."""

import errno
import os
import reprlib
import tempfile
from typing import Any


def file_path(value: Any, argument: str = "path") -> str:
    """The path of a file, which is no folder, as a string."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        received = reprlib.repr(value)  # of an array, a line
        raise ValueError(f"{argument} must be the path of a file. Received: {received}")
    path = os.fspath(value)
    if os.path.isdir(path):
        raise ValueError(f"{argument} must be the path of a file. Received: {path!r}, a folder")
    return path


def new_file(path: Any, argument: str = "path") -> str:
    """The path of a file that is to be written, checked before anything is computed.

    Raises:
        ValueError: it is no path of a file; `argument` is named.
        FileNotFoundError: its folder does not exist.
        PermissionError: its folder cannot be written.
    """
    path = file_path(path, argument)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "Its folder does not exist", path)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:  # the system's own words differ from folder to folder
        raise PermissionError(errno.EACCES, "Its folder cannot be written", path) from error
    return path
