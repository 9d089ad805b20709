"""What `check_parity` found: as text, as data, as files with a table and a plot."""

import csv
import dataclasses
import io
import json
import os
from typing import Any

from repq_tf.files import replacing, write_atomically
from repq_tf.text import columns

# The share of values that may differ, and the steps by which one may.
BOUND = (0.005, 1)
_TICKS = 80
_LEGEND = (
    "different: values that are not equal in the model and in the file",
    "largest: their largest difference, in steps of the layer's output",
    "outside: values of the file that lie beyond the levels of the output's bits",
)


@dataclasses.dataclass(frozen=True)
class LayerParity:
    """How one stored tensor compares.

    Attributes:
        name: the Keras layer that makes it.
        outputs: number of values compared.
        different: how many differ.
        largest: by how many steps at most.
        outside: how many values of the file lie outside the model's grid of b bits.
    """

    name: str
    outputs: int
    different: int
    largest: int
    outside: int = 0

    @property
    def share(self) -> float:
        """The share of values that differ."""
        return self.different / self.outputs

    @property
    def diverges(self) -> bool:
        """Whether it differs by more than the bound."""
        share, steps = BOUND
        return self.share > share or self.largest > steps


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What `check_parity` found; `str(report)` is a table.

    Attributes:
        images: number of images.
        top1_agreement: share of images with the same largest value in every output that is a
            vector; None if no output is one.
        layers: a `LayerParity` for each stored tensor, in order.
        outputs: likewise for each output of the model, as the caller of the file gets it.
        causes: what was found wrong in the file at the first divergent layer, the likeliest
            first; `repq_tf.parity.diagnosis.Cause`.
    """

    images: int
    top1_agreement: float | None
    layers: tuple
    outputs: tuple
    causes: tuple = ()

    @property
    def equal_outputs(self) -> float:
        """The share of the model's outputs that are equal."""
        count = sum(end.outputs for end in self.outputs)
        return 1 - sum(end.different for end in self.outputs) / count

    @property
    def largest_difference(self) -> int:
        """Of the model's outputs, in steps."""
        return max(end.largest for end in self.outputs)

    @property
    def first_divergent(self) -> str | None:
        """The name of the first layer that differs by more than rounding, or None."""
        parts = (*self.layers, *self.outputs)
        return next((part.name for part in parts if part.diverges), None)

    @property
    def holds(self) -> bool:
        """Whether the file is the model: no layer diverges, and the classes agree."""
        return self.first_divergent is None and self.top1_agreement in (None, 1.0)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        names = ("equal_outputs", "largest_difference", "first_divergent", "holds")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in names}}

    def rows(self) -> list[tuple[str, ...]]:
        """The table, lines of cells, the head first."""
        lines: list[tuple[str, ...]] = [
            ("layer", "outputs", "different", "share", "largest", "outside", "")
        ]
        for part, kind in [(row, "") for row in self.layers] + [
            (end, "output") for end in self.outputs
        ]:
            verdict = "DIVERGES" if part.diverges else ""
            counts = (part.outputs, part.different, f"{part.share:.4%}", part.largest)
            cells = (part.name, *counts, part.outside, f"{kind} {verdict}".strip())
            lines.append(tuple(str(cell) for cell in cells))
        return lines

    def summary(self) -> str:
        """The verdict, in a line."""
        agreement = "-" if self.top1_agreement is None else f"{self.top1_agreement:.2%}"
        return (
            f"{self.images} images: top-1 agreement {agreement}, final outputs equal "
            f"{self.equal_outputs:.3%}, largest difference {self.largest_difference} steps; "
            f"first divergent layer: {self.first_divergent or 'none'}"
        )

    def __str__(self) -> str:
        causes = [f"likely cause: {cause}" for cause in self.causes]
        return "\n".join([columns(self.rows()), *_LEGEND, *causes, self.summary()])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `parity.csv`, `.json`, `.md` and `.png`, each whole or not at all.

        Args:
            folder: made if it is missing.

        Raises:
            OSError: it cannot be written.
        """
        os.makedirs(folder, exist_ok=True)
        contents = {
            "parity.csv": self._csv(),
            "parity.json": json.dumps(self.as_dict(), indent=2) + "\n",
            "parity.md": self._markdown(),
        }
        for name, text in contents.items():
            write_atomically(os.path.join(folder, name), text.encode())
        with replacing(os.path.join(folder, "parity.png")) as temporary:
            self._figure().savefig(temporary, dpi=100)

    def _csv(self) -> str:
        text = io.StringIO()
        names = ("name", "outputs", "different", "share", "largest", "outside", "diverges")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("kind", *names))
        for kind, parts in (("layer", self.layers), ("output", self.outputs)):
            for part in parts:
                writer.writerow((kind, *(getattr(part, name) for name in names)))
        return text.getvalue()

    def _markdown(self) -> str:
        head, *lines = (
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
            for row in self.rows()
        )
        rule = "|---|---:|---:|---:|---:|---:|---|"
        table = "\n".join([head, rule, *lines])
        causes = "".join(f"- likely cause: {cause}\n" for cause in self.causes)
        legend = "".join(f"- {line}\n" for line in _LEGEND)
        parts = ("# Parity", self.summary(), causes, table, legend, "![Parity](parity.png)")
        return "\n\n".join(part.strip() for part in parts if part) + "\n"

    def _figure(self) -> Any:
        """The share of different values and the largest difference of every layer."""
        from matplotlib.figure import Figure  # without pyplot: no window, no global state

        parts = (*self.layers, *self.outputs)
        width = min(max(6.0, 0.22 * len(parts)), 24.0)
        figure = Figure(figsize=(width, 6.0), layout="constrained")
        axes = figure.subplots(2, 1, sharex=True)
        places = range(len(parts))
        colors = ["tab:red" if part.diverges else "tab:blue" for part in parts]
        share, steps = BOUND
        for axis, values, bound, label in (
            (axes[0], [100 * part.share for part in parts], 100 * share, "values differing, %"),
            (axes[1], [part.largest for part in parts], steps, "largest difference, steps"),
        ):
            axis.bar(places, values, color=colors)
            axis.axhline(bound, color="gray", linestyle="--", linewidth=1, label="bound")
            axis.set_ylabel(label, fontsize=8)
            axis.set_ylim(0, 1.1 * max(*values, bound))
            axis.legend(fontsize=7)
        axes[0].set_title(self.summary(), fontsize=8, wrap=True)
        every = -(-len(parts) // _TICKS)
        names = [part.name for part in self.layers]
        names += [f"{end.name} (output)" for end in self.outputs]
        axes[1].set_xticks(places[::every], names[::every], rotation=90, fontsize=6)
        return figure
