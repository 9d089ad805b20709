"""Kinds of values: each reads the text of a flag, and says what it allows.

Text that cannot be read stays what it is, and is then not allowed.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeAlias

# Ends of lines, and bytes that are no UTF-8: reports could not hold them.
_UNWRITABLE = re.compile("[\n\r\ud800-\udfff]")
_SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Integer:
    """An integer within bounds.

    Attributes:
        low: The least.
        high: The greatest, if any.
        also: Another one that is allowed, if any.
    """

    low: int
    high: int | None = None
    also: int | None = None
    type = int

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.high is None:
            return f"an integer of at least {self.low}"
        also = "" if self.also is None else f", or {self.also}"
        return f"an integer from {self.low} to {self.high}{also}"

    def read(self, text: str) -> int | str:
        """Returns the value of a text, or the text."""
        return int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else text

    def admits(self, value: Any) -> bool:
        """Says whether a value is allowed."""
        if not isinstance(value, Integral) or isinstance(value, bool):
            return False
        number, high = int(value), math.inf if self.high is None else self.high
        return self.low <= number <= high or number == self.also


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number within bounds.

    Attributes:
        low: The least, or what it must be greater than.
        high: The greatest, or what it must be less than, if any.
        low_open: Whether `low` itself is not allowed.
        high_open: Likewise.
    """

    low: float = 0
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    type = float

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        text = f"{'greater than' if self.low_open else 'of at least'} {self.low}"
        if self.high is not None:
            text += f" and {'less than' if self.high_open else 'at most'} {self.high}"
        return f"a finite number {text}"

    def read(self, text: str) -> float | str:
        """Returns the value of a text, or the text."""
        try:
            return float(text) if text.isascii() and "_" not in text else text
        except ValueError:
            return text

    def admits(self, value: Any) -> bool:
        """Says whether a value is allowed."""
        if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
            return False
        number, high = float(value), math.inf if self.high is None else self.high
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < high if self.high_open else number <= high)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several words.

    Attributes:
        words: All of them.
    """

    words: tuple[str, ...]
    type = str

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        return f"one of: {', '.join(self.words)}"

    def read(self, text: str) -> str:
        """Returns the text."""
        return text

    def admits(self, value: Any) -> bool:
        """Says whether a value is allowed."""
        return isinstance(value, str) and value in self.words


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or false."""

    type = bool
    allowed = "true or false"

    def read(self, text: str) -> bool | str:
        """Returns the value of a text, or the text."""
        return _SWITCHES.get(text.lower(), text)

    def admits(self, value: Any) -> bool:
        """Says whether a value is allowed."""
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Text:
    """One line of text that is not empty, nor looks like a flag after one without a value.

    Attributes:
        allowed: What it must be, in words.
    """

    allowed: str
    type = str

    def read(self, text: str) -> str:
        """Returns the text."""
        return text

    def admits(self, value: Any) -> bool:
        """Says whether a value is allowed."""
        if not isinstance(value, str) or not value.strip() or value.startswith("--"):
            return False
        return not _UNWRITABLE.search(value)


Kind: TypeAlias = Integer | Number | Choice | Switch | Text


def did_you_mean(value: Any, words: Iterable[str]) -> str:
    """Returns a hint at the word that is nearest to a misspelt one, or an empty text."""
    near = difflib.get_close_matches(str(value).lower(), list(words), n=1)
    return f". Did you mean {near[0]}?" if near else ""
