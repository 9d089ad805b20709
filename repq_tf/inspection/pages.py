"""Pages of HTML that need no other file: tables, terms with their meanings, pictures."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Cells: TypeAlias = Sequence[str]
Figure: TypeAlias = Any  # one of Matplotlib

_STYLE = """
body { font: 14px sans-serif; margin: 2em; }
table { border-collapse: collapse; }
th, td { padding: 0.25em 0.75em; text-align: right; border-bottom: 1px solid #ddd; }
.word { text-align: left; }
thead th { position: sticky; top: 0; background: #fff; border-bottom: 2px solid #444; }
tfoot td { font-weight: bold; border-top: 2px solid #444; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.25em 1.5em; }
dt { font-weight: bold; }
dd { margin: 0; }
img { max-width: 100%; }
"""
_DPI = 80


def page(title: str, *parts: str) -> str:
    """A whole page.

    Args:
        title: its title and first heading, as text.
        *parts: what follows, as HTML.
    """
    title, body = html.escape(title), "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def heading(text: str) -> str:
    """A heading of a part of the page."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraphs(texts: Iterable[str]) -> str:
    """Texts, a paragraph each."""
    return "\n".join(f"<p>{html.escape(text)}</p>" for text in texts)


def table(header: Cells, body: Iterable[Cells], words: int, foot: Cells | None = None) -> str:
    """A table.

    Args:
        header: the titles of the columns.
        body: the rows.
        words: how many of the first columns hold words, which stand on the left.
        foot: a last row, of totals.
    """
    rows = "\n".join(_row(cells, words) for cells in body)
    end = "" if foot is None else f"<tfoot>{_row(foot, words)}</tfoot>\n"
    head = _row(header, words, "th")
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}\n</tbody>\n{end}</table>"


def _row(cells: Cells, words: int, tag: str = "td") -> str:
    kinds = (' class="word"' if index < words else "" for index in range(len(cells)))
    found = (
        f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
        for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{''.join(found)}</tr>"


def glossary(terms: Mapping[str, str]) -> str:
    """Terms and their meanings."""
    lines = "\n".join(
        f"<dt>{html.escape(term)}</dt><dd>{html.escape(meaning)}</dd>"
        for term, meaning in terms.items()
    )
    return f"<dl>\n{lines}\n</dl>"


def picture(figure: Figure, text: str) -> str:
    """A figure, drawn into the page.

    Args:
        figure: of Matplotlib.
        text: what it shows, for who cannot see it.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
