"""Draws the pictures of the documentation: `python docs/drawings.py` writes `docs/images/`.

All words stand in filled shapes and all lines are of a middle grey, so that the pictures can be
read on light and on dark pages. The numbers in kernels are what the library's algebra makes of
them.
"""

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from repq_tf.branches import SOBEL_X
from repq_tf.kernels import AffineKernel

IMAGES = Path(__file__).parent / "images"

FEATURES, BRANCH, MERGED, QUANTIZED = "#96561a", "#2f6c9e", "#2d7a4d", "#7a4aa0"
GREY, LINE = "#66707a", "#8b949e"
CELL = 26


class Drawing:
    """Shapes on a canvas."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.size = width, height
        self.title = title
        self.shapes: list[str] = []

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str,
        color: str,
        size: int = 14,
    ) -> None:
        """A box with lines of text in its middle."""
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"'
            f' fill="{color}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            middle = y + height / 2 + 5 + 17 * (number - (len(lines) - 1) / 2)
            self.text(x + width / 2, middle, line, size)

    def text(self, x: float, y: float, text: str, size: int = 14) -> None:
        """White text, which belongs into a shape."""
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="#fff" text-anchor="middle">'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """A line through points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2"{dashes}'
            ' marker-end="url(#head)"/>'
        )

    def kernel(self, x: float, y: float, values: np.ndarray, color: str) -> None:
        """The numbers of a kernel; what is zero is grey."""
        for (row, column), value in np.ndenumerate(values):
            left, top = x + column * CELL, y + row * CELL
            self.shapes.append(
                f'<rect x="{left + 1:g}" y="{top + 1:g}" width="{CELL - 2}"'
                f' height="{CELL - 2}" rx="3" fill="{color if value else GREY}"/>'
            )
            number = f"{round(value, 2):g}".replace("-", "\N{MINUS SIGN}")
            self.text(left + CELL / 2, top + CELL / 2 + 4, number, size=11)

    def sign(self, x: float, y: float, text: str) -> None:
        """A round sign, such as a plus."""
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="13" fill="{GREY}"/>')
        self.text(x, y + 5, text, size=15)

    def svg(self) -> str:
        """The picture."""
        width, height = self.size
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7"'
            f' markerHeight="7" orient="auto"><path d="M0,0L10,5L0,10z" fill="{LINE}"/>'
            "</marker>"
        )
        shapes = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
            f' viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{head}</defs>\n{shapes}\n</svg>\n"
        )


def plain(values: object) -> AffineKernel:
    """A kernel of one channel."""
    return AffineKernel(np.array(values, float)[..., None, None], np.zeros(1))


def numbers(kernel: AffineKernel) -> np.ndarray:
    """The numbers of a kernel of one channel."""
    return np.asarray(kernel.kernel)[:, :, 0, 0]


ROW, COLUMN = plain([[1, 2, 1]]), plain([[1], [3], [1]])
SQUARE = plain([[0.1, 0.2, 0.1], [0.3, 0.8, 0.3], [0.1, 0.2, 0.1]])


def repq() -> Drawing:
    """Branches, the merged kernel, and its quantizer."""
    drawing = Drawing(860, 340, "RepQ: branches are merged into M, and M is quantized")
    branches = {"BN(3x3)": SQUARE, "BN(1x3)": ROW.scale(0.2), "BN(3x1)": COLUMN.scale(0.1)}
    merged = sum(list(branches.values())[1:], SQUARE)
    for number, (name, kernel) in enumerate(branches.items()):
        y = 10 + 75 * number
        drawing.box(10, y, 120, 56, f"branch\n{name}", BRANCH)
        rows, columns = numbers(kernel).shape
        drawing.arrow((130, y + 28), (238, y + 28), (282, 131 - (1 - number) * 12))
        drawing.box(150, y + 14, 70, 28, "x".join(map(str, (rows, columns))), GREY)
    drawing.sign(297, 131, "+")
    drawing.arrow((310, 131), (345, 131))
    drawing.box(350, 50, 94, 28, "M", MERGED)
    drawing.kernel(352, 86, numbers(merged), MERGED)
    drawing.arrow((447, 131), (575, 131))
    drawing.box(462, 117, 90, 28, "LSQ, 8 bits", GREY)
    drawing.box(580, 50, 94, 28, "Q(M)", QUANTIZED)
    levels = np.round(numbers(merged) / (numbers(merged).max() / 127))
    drawing.kernel(582, 86, levels, QUANTIZED)
    drawing.arrow((677, 131), (760, 131), (760, 236))
    drawing.box(10, 242, 120, 56, "features\nQ(X)", FEATURES)
    drawing.arrow((130, 270), (635, 270))
    drawing.box(640, 242, 210, 56, "activation(Q(X) * Q(M) + b)", FEATURES)
    drawing.arrow((850, 305), (850, 322), (3, 322), (3, 38), (9, 38), dashed=True)
    drawing.box(330, 309, 230, 26, "gradients, to every branch", GREY)
    return drawing


def pipeline() -> Drawing:
    """From a float network to a file that was checked."""
    drawing = Drawing(860, 250, "The pipeline: train, quantize, train, export, check")
    steps = (
        (10, "float network\nof blocks", BRANCH),
        (235, "quantized network\nQ(M) in every block", QUANTIZED),
        (460, "the same,\ntrained", QUANTIZED),
        (685, "model.tflite\nintegers only", MERGED),
    )
    for x, text, color in steps:
        drawing.box(x, 30, 165, 60, text, color)
    for x, text in ((175, "quantize"), (400, "fit"), (625, "export")):
        drawing.arrow((x, 60), (x + 58, 60))
        drawing.box(x - 8, 2, 74, 24, text, GREY)
    drawing.arrow((92, 90), (92, 170))
    drawing.box(55, 115, 74, 24, "merge", GREY)
    drawing.box(10, 175, 165, 60, "plain Keras network\none Conv2D a block", MERGED)
    drawing.arrow((542, 90), (542, 205), (565, 205))
    drawing.arrow((767, 90), (767, 205), (742, 205))
    drawing.box(570, 180, 168, 50, "check_parity\nall integers equal", FEATURES)
    return drawing


def equation(title: str, *parts: np.ndarray | str) -> Drawing:
    """Kernels and signs in a row; the last kernel is the merged one."""
    heights = [part.shape[0] for part in parts if not isinstance(part, str)]
    height = max(heights) * CELL + 8
    drawing = Drawing(0, height, title)
    x = 4.0
    for number, part in enumerate(parts):
        if isinstance(part, str) and len(part) == 1:
            drawing.sign(x + 22, height / 2, part)
            x += 44
        elif isinstance(part, str):
            width = 8 * len(part) + 16
            drawing.box(x, height / 2 - 15, width, 30, part, FEATURES)
            x += width
        else:
            color = MERGED if number == len(parts) - 1 else BRANCH
            drawing.kernel(x, (height - part.shape[0] * CELL) / 2, part, color)
            x += part.shape[1] * CELL
    drawing.size = x + 4, height
    return drawing


def nodes() -> dict[str, Drawing]:
    """What each branch node merges into, one channel, in a block of 3x3."""
    size = (3, 3)
    norm = np.sqrt((numbers(ROW) ** 2).sum())
    rows = {
        "convolution": (numbers(ROW), "=", numbers(ROW.embed(size))),
        "identity": ("identity", "=", numbers(AffineKernel.identity(1).embed(size))),
        "fixed": ("Sobel", "=", np.asarray(SOBEL_X, float)),
        "batch_norm": ("gain 0.5", "\u00d7", numbers(SQUARE), "=", numbers(SQUARE.scale(0.5))),
        "scale": ("gain 2", "\u00d7", numbers(SQUARE), "=", numbers(SQUARE.scale(2))),
        "unit_norm": (numbers(ROW), "/", f"norm {norm:.3g}", "=", numbers(ROW.scale(1 / norm))),
        "sum": (numbers(ROW), "+", numbers(COLUMN), "=", numbers(ROW + COLUMN)),
        "chain": (numbers(ROW), "\u2192", numbers(COLUMN), "=", numbers(ROW.then(COLUMN))),
    }
    return {name: equation(f"The branch {name}", *parts) for name, parts in rows.items()}


def pictures() -> dict[str, str]:
    """All pictures, by the names of their files."""
    drawings = {"repq": repq(), "pipeline": pipeline()}
    drawings |= {f"branch_{name}": drawing for name, drawing in nodes().items()}
    return {f"{name}.svg": drawing.svg() for name, drawing in drawings.items()}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")
