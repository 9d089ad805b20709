"""Files of a run: written whole or not at all, and read only if they are what was written.

The SHA-256 of every product stands in the file `SHA256SUMS` beside it, as `sha256sum -c`
reads it. It is written before the product comes into its place, so that a kill in between
leaves nothing that looks damaged.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator

from repq_tf.files import replacing, write_atomically
from repq_tf.train.errors import UserError

SUMS = "SHA256SUMS"


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """Yields a temporary name for the content of a file, as `files.replacing` does.

    Raises:
        UserError: If it cannot be written: the disk is full, the folder is read-only, ...
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. What was there before is"
            " unchanged, and the same command goes on from there."
        ) from error


@contextlib.contextmanager
def product(path: str) -> Iterator[str]:
    """Yields a temporary name for a product, whose SHA-256 is kept."""
    with writing(path) as temporary:
        yield temporary
        add_sum(path, temporary)


def add_sum(path: str, content: str | None = None) -> None:
    """Keeps the SHA-256 of a product.

    Args:
        path: The product.
        content: The file that holds its content; by default the product itself.
    """
    folder, name = os.path.split(os.path.abspath(path))
    sums = {**_read_sums(folder), name: sha256(content or path)}
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    with writing(os.path.join(folder, SUMS)) as temporary:
        write_atomically(temporary, lines.encode())


def check_product(path: str) -> None:
    """Makes sure that a product is what was written, if its SHA-256 is known.

    Raises:
        UserError: If it is not.
    """
    folder, name = os.path.split(os.path.abspath(path))
    known = _read_sums(folder).get(name)
    if known and known != sha256(path):
        raise UserError(f"{path} is damaged: its SHA-256 is not the one in {SUMS} beside it.")


def sha256(path: str) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(folder: str) -> dict[str, str]:
    path = os.path.join(folder, SUMS)
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n").partition("  ") for line in file]
    return {name: digest for digest, _, name in lines}
