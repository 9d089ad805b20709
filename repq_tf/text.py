"""Text for people."""

from collections.abc import Container, Iterable, Sequence


def columns(lines: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """Lines of cells as text, in columns.

    Args:
        lines: sequences of strings of one length.
        right: indices of the columns whose cells stand on the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rows = (
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return "\n".join(row.rstrip() for row in rows)


def quantity(number: float) -> str:
    """A count in three digits with a decimal prefix: 1814073344 is "1.81 G"."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {prefix}"
    return str(number)
