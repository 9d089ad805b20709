"""What the API reference makes of our docstrings."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads `Example:` as `Examples:`, the heading under which Griffe expects `>>>`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the heading in the docstring of an object."""
        if obj.docstring:
            text = re.sub(
                r"^Example(?:, (.*))?:$", r"Examples: \1", obj.docstring.value, flags=re.M
            )
            obj.docstring.value = text
