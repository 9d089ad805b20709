"""Draws the charts of the documentation, of what `benchmarks/results/` holds.

`python docs/charts.py` writes them into `docs/images/`, beside the drawings.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from drawings import BRANCH, FEATURES, GREY, IMAGES, LINE, MERGED, QUANTIZED, Drawing

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
COLORS = (BRANCH, FEATURES, MERGED, QUANTIZED, "#a8324a")
LETTER = 7.4  # the width of one, about


def read(name: str) -> dict[str, Any]:
    """The content of a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


class Chart:
    """A plane with axes in a part of a drawing.

    Args:
        drawing: where it is drawn.
        place: left, top, width and height of the plane.
        x: the lowest and the highest value.
        y: likewise, from below.
        logarithmic: whether the axes are, x and y.
    """

    def __init__(
        self,
        drawing: Drawing,
        place: tuple[float, float, float, float],
        x: tuple[float, float],
        y: tuple[float, float],
        logarithmic: tuple[bool, bool] = (False, False),
    ) -> None:
        self.drawing = drawing
        self.left, self.top, self.width, self.height = place
        self.x = self._scale(x, self.left, self.left + self.width, logarithmic[0])
        self.y = self._scale(y, self.top + self.height, self.top, logarithmic[1])
        bottom, right = self.top + self.height, self.left + self.width
        self.line((self.left, self.top), (self.left, bottom), (right, bottom))

    @staticmethod
    def _scale(
        ends: tuple[float, float], first: float, last: float, logarithmic: bool
    ) -> Callable[[float], float]:
        """The function from values to a coordinate."""
        change = math.log if logarithmic else float
        low, high = map(change, ends)
        return lambda value: first + (last - first) * (change(value) - low) / (high - low)

    def line(
        self, *points: tuple[float, float], color: str = LINE, dashed: bool = False
    ) -> None:
        """A line through points of the drawing."""
        path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.drawing.shapes.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>'
        )

    def label(self, x: float, y: float, text: str, color: str = GREY) -> None:
        """A word in a box around a point of the drawing."""
        width = LETTER * len(text) + 8
        self.drawing.box(x - width / 2, y - 10, width, 20, text, color, 13)

    def marks(self, x: Mapping[str, float], y: Mapping[str, float]) -> None:
        """Values with their words along the axes."""
        for text, value in x.items():
            self.label(self.x(value), self.top + self.height + 18, text)
        for text, value in y.items():
            self.label(self.left - LETTER * len(text) / 2 - 12, self.y(value), text)

    def point(self, x: float, y: float, color: str) -> None:
        """A dot at a value."""
        self.drawing.shapes.append(
            f'<circle cx="{self.x(x):.4g}" cy="{self.y(y):.4g}" r="5" fill="{color}"/>'
        )

    def curve(self, values: Sequence[tuple[float, float]], color: str) -> None:
        """Dots at values, and a line through them."""
        self.line(*((self.x(x), self.y(y)) for x, y in values), color=color)
        for x, y in values:
            self.point(x, y, color)

    def bars(self, values: Mapping[float, float], width: float, color: str) -> None:
        """Bars of a width around values."""
        bottom = self.top + self.height
        for x, count in values.items():
            left, right, top = self.x(x - width / 2), self.x(x + width / 2), self.y(count)
            self.drawing.shapes.append(
                f'<rect x="{left:.4g}" y="{top:.4g}" width="{right - left:.3g}"'
                f' height="{bottom - top:.4g}" fill="{color}"/>'
            )


def by_numbers(counts: Mapping[str, int]) -> dict[float, float]:
    """Counts of values that JSON keeps as words."""
    return {float(value): float(count) for value, count in counts.items()}


def weights() -> Drawing:
    """The weights of a RepVGG block, and their levels on two grids of few bits."""
    found = read("kernel_weights")
    bits, layer = found["bits"], found["layer"]
    drawing = Drawing(860, 470, f"Weights of {layer}, and their levels at {bits} bits")
    titles = {
        "branch": "the 3x3 branch alone",
        "merged": "merged, with an identity",
        "uniform": f"levels of {bits} bits",
        "wide_tap": f"levels of {bits} bits, wide tap",
    }
    for key in ("uniform", "wide_tap"):
        titles[key] += f": {found[key]['0'] / sum(found[key].values()):.0%} are 0"
    rows = (
        ("branch", "merged", (BRANCH, MERGED), 0.5),
        ("uniform", "wide_tap", [QUANTIZED] * 2, 1.0),
    )
    for number, (*keys, colors, width) in enumerate(rows):
        pair = [by_numbers(found[key]) for key in keys]
        ends = [value for counts in pair for value in counts]
        x = (min(ends) - width, max(ends) + width)
        most = max(value for counts in pair for value in counts.values())
        for side, (key, counts, color) in enumerate(zip(keys, pair, colors, strict=True)):
            place = (62 + 425 * side, 50 + 225 * number, 360, 140)
            chart = Chart(drawing, place, x, (0.5, 2 * most), (False, True))
            chart.bars(counts, width * 0.9, color)
            tens = {f"{10**k}": 10.0**k for k in range(int(math.log10(most)) + 1)}
            step = 10 * math.ceil((x[1] - x[0]) / 60)
            ticks = range(math.ceil(x[0] / step) * step, int(x[1]) + 1, step)
            chart.marks({f"{k}": k for k in ticks}, tens)
            chart.label(place[0] + 180, place[1] - 20, titles[key], FEATURES)
    return drawing


def peaks() -> Drawing:
    """How far the largest weight stands out, by block: of the 3x3 branch, and merged."""
    found = read("kernel_weights")["max_over_rms"]
    drawing = Drawing(860, 70 + 34 * len(found), "max/rms of kernels")
    most = max(max(pair) for pair in found.values())
    place = (150, 40, 640, 34 * len(found))
    chart = Chart(drawing, place, (0, 1.08 * most), (len(found), 0))
    chart.label(place[0] + 110, 18, "max/rms of the 3x3 branch", BRANCH)
    chart.label(place[0] + 330, 18, "of the merged kernel", MERGED)
    for number, (name, pair) in enumerate(found.items()):
        chart.label(78, chart.y(number + 0.5), name)
        for part, (value, color) in enumerate(zip(pair, (BRANCH, MERGED), strict=True)):
            top = chart.y(number) + 4 + 13 * part
            drawing.shapes.append(
                f'<rect x="{place[0] + 1}" y="{top:.4g}" rx="2" height="12" fill="{color}"'
                f' width="{chart.x(value) - place[0]:.4g}"/>'
            )
        chart.label(chart.x(pair[1]) + 24, chart.y(number + 0.5), f"{pair[1]:.0f}")
    return drawing


def accuracy_by_bits() -> Drawing:
    """CIFAR-10, quantized without training: what each kind of levels leaves by bits."""
    rows = read("post_training_cifar10")["rows"]
    found = {(row["model"], row["method"]): 100 * row["accuracy"] for row in rows}
    lines = {
        "plain twin, odd levels": ("repvgg_tiny_plain", "odd"),
        "plain twin": ("repvgg_tiny_plain", "uniform"),
        "RepVGG, wide tap, odd": ("repvgg_tiny", "odd, wide tap"),
        "RepVGG, wide tap": ("repvgg_tiny", "uniform, wide tap"),
        "RepVGG": ("repvgg_tiny", "uniform"),
    }
    drawing = Drawing(860, 330, "Accuracy on CIFAR-10 by the bits of weights, before training")
    chart = Chart(drawing, (60, 20, 540, 260), (4.2, 1.8), (0, 100))
    chart.marks(
        {f"{bits} bits": bits for bits in (4, 3, 2)}, {f"{p} %": p for p in (0, 50, 100)}
    )
    real = found["repvgg_tiny", "float"]
    chart.line((60, chart.y(real)), (600, chart.y(real)), dashed=True)
    chart.label(730, 30, f"float {real:.1f} %")
    for number, (name, (model, kind)) in enumerate(lines.items()):
        values = [(bits, found[model, f"W{bits}A8 {kind}"]) for bits in (4, 3, 2)]
        chart.curve(values, COLORS[number])
        chart.label(
            730, 70 + 34 * number, f"{name}: {values[-1][1]:.0f} % at 2", COLORS[number]
        )
    return drawing


def latency() -> Drawing:
    """Size and latency of networks' files: a line from float32 to int8 for each."""
    rows = {row["model"]: row for row in read("tflite_latency_224")["rows"]}
    names = {
        "ac_resnet18": ("AC-ResNet-18", 1),
        "repvgg_a0": ("RepVGG-A0", -1),
        "mobileone_s0": ("MobileOne-S0", 1),
    }
    drawing = Drawing(860, 390, "Size and latency of .tflite files, float32 and int8")
    chart = Chart(drawing, (80, 20, 740, 330), (1, 130), (0.9, 22), (True, True))
    chart.marks(
        {f"{size} MB": size for size in (2, 5, 10, 20, 50, 100)},
        {f"{ms} ms": ms for ms in (1, 2, 5, 10, 20)},
    )
    for color, (model, (name, side)) in zip(COLORS, names.items(), strict=False):
        row = rows[model]
        ends = [
            (row["bytes"][kind] / 1e6, row["milliseconds"][kind])
            for kind in ("float32", "int8")
        ]
        chart.curve(ends, color)
        faster = ends[0][1] / ends[1][1]
        texts = f"{name}, float32", f"int8, {faster:.1f} times as fast"
        for text, (size, milliseconds) in zip(texts, ends, strict=True):
            away = side * (LETTER * len(text) / 2 + 18)
            chart.label(chart.x(size) + away, chart.y(milliseconds), text, color)
    return drawing


def pictures() -> dict[str, str]:
    """All charts, by the names of their files."""
    charts = {
        "weights_of_repvgg": weights(),
        "peaks_of_repvgg": peaks(),
        "accuracy_by_bits": accuracy_by_bits(),
        "size_and_latency": latency(),
    }
    return {f"{name}.svg": drawing.svg() for name, drawing in charts.items()}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, svg in pictures().items():
        (IMAGES / name).write_text(svg, encoding="utf-8")
