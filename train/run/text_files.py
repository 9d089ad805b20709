"""Text and JSON files of a run: written whole or not at all."""

import hashlib
import json
from typing import Any

from repq_tf.files import write_atomically
from repq_tf.train.errors import UserError
from repq_tf.train.run.products import writing

_SEAL = "sha256"


def write_text(path: str, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with writing(path) as temporary:
        write_atomically(temporary, text.encode())


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a dictionary as a JSON file, whole or not at all, with its SHA-256."""
    write_text(path, json.dumps({**value, _SEAL: _digest(value)}, indent=2) + "\n")


def read_json(path: str) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        if value.pop(_SEAL, None) != _digest(value):
            raise ValueError("its SHA-256 is not that of its content")
    except (AttributeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it or the run folder.") from error
    return value


def _digest(value: dict[str, Any]) -> str:
    """The SHA-256 of a dictionary as JSON, whatever the order of its keys."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
