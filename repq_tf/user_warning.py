"""Warnings that show the user's line."""

import os
import sys
import warnings

_LIBRARY = os.path.dirname(__file__) + os.sep


def warn_user(text: str) -> None:
    """Warns at the line outside of the library that led here, however many calls ago.

    Python shows a warning once for each line: at one of the library's own, the user's next
    mistake of the kind would pass in silence.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
