"""What `sensitivity` returns: noise by layer and bits, and what bits cost."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Self

from repq_tf.files import new_file, replacing
from repq_tf.inspection import plots
from repq_tf.inspection.costs import BYTES_OF_BIAS
from repq_tf.inspection.trade_off import Choice
from repq_tf.text import columns

SQNR = "sqnr"
WEIGHTS, FEATURES = "weights", "features"


@dataclasses.dataclass(frozen=True)
class SensitivityRow:
    """What one quantizer does to the outputs of a network in floating point.

    Attributes:
        name: the layer.
        kind: "weights", of its kernel; or "features", of its output.
        bits: of the quantizer.
        noise: the noise power at the network's outputs as a part of the signal's, or what the
            metric returned; the larger, the worse.
    """

    name: str
    kind: str
    bits: int
    noise: float

    @property
    def sqnr(self) -> float | None:
        """The signal-to-noise ratio in decibels, for the metric "sqnr"; None without noise."""
        return -10 * math.log10(self.noise) if self.noise > 0 else None


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What the kernel of a layer is made of.

    Attributes:
        weights: the number of weights of the merged kernel.
        biases: the number of biases.
        macs: multiply-accumulates of one image.
        wide_input: whether `repq_tf.quantize` gives its input 8 bits at least, as a layer at
            an end of the model, whatever `activation_bits` is.
    """

    weights: int
    biases: int
    macs: int
    wide_input: bool

    def size(self, bits: int) -> int:
        """Bytes of its weights, packed, and of its biases (int32)."""
        return -(-self.weights * bits // 8) + BYTES_OF_BIAS * self.biases

    def bit_operations(self, bits: int, activation_bits: int) -> int:
        """`macs * weight bits * input bits`."""
        wide = self.wide_input and activation_bits < 8
        return self.macs * bits * (8 if wide else activation_bits)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` returns; `str(table)` is the table.

    Attributes:
        name: the model.
        images: on how many images noise was measured.
        metric: "sqnr", or the name of the function.
        rows: a `SensitivityRow` for each quantizer and number of bits, in the model's order.
        costs: the `LayerCost` of each layer with weights.
    """

    name: str
    images: int
    metric: str
    rows: tuple[SensitivityRow, ...]
    costs: Mapping[str, LayerCost]

    def __str__(self) -> str:
        bits = sorted({row.bits for row in self.rows})
        cells: dict[tuple[str, str], dict[int, str]] = {}
        for row in self.rows:
            value = row.sqnr if self.metric == SQNR else row.noise
            shown = "exact" if value is None else f"{value:.4g}"
            cells.setdefault((row.name, row.kind), {})[row.bits] = shown
        header = ("layer", "quantized", *(f"{b} bits" for b in bits))
        body = [(*key, *(found.get(b, "") for b in bits)) for key, found in cells.items()]
        what = "signal-to-noise ratio in dB" if self.metric == SQNR else self.metric
        title = f"{self.name}: {what} at the outputs with one quantizer alone, on {self.images}"
        table = columns([header, *body], range(2, len(header)))
        return "\n".join([f"{title} images", table])

    def as_dict(self) -> dict[str, Any]:
        """The table as plain data, which JSON can hold."""
        return {
            "name": self.name,
            "images": self.images,
            "metric": self.metric,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "costs": {name: dataclasses.asdict(cost) for name, cost in self.costs.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The table that `as_dict` described."""
        rows = tuple(SensitivityRow(**row) for row in data["rows"])
        costs = {name: LayerCost(**cost) for name, cost in data["costs"].items()}
        return cls(data["name"], data["images"], data["metric"], rows, costs)

    def choices(self, cost: Callable[[LayerCost, int], float]) -> dict[str, list[Choice]]:
        """The choices there are for the weights of each layer.

        Args:
            cost: `cost(layer, bits)`, of a `LayerCost`.
        """
        found: dict[str, list[Choice]] = {name: [] for name in self.costs}
        for row in self.rows:
            if row.kind == WEIGHTS:
                price = cost(self.costs[row.name], row.bits)
                found[row.name].append(Choice(row.bits, price, row.noise))
        return found

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the table, and noise against size as `allocate_bits` trades them.

        Args:
            path: a new file, whose name ends in .png, .svg or .pdf.
        """
        name = new_file(path)
        if not name.endswith(plots.SUFFIXES):
            raise ValueError(f"path must end in one of {plots.SUFFIXES}. Received: {name!r}")
        noise: dict[int, dict[str, float]] = {}
        for row in self.rows:
            noise.setdefault(row.bits, {})[f"{row.name}: {row.kind}"] = row.noise
        names = list(dict.fromkeys(name for found in noise.values() for name in found))
        series = {bits: [noise[bits].get(name) for name in names] for bits in sorted(noise)}
        figure = plots.draw_sensitivity(names, series, self.choices(LayerCost.size))
        with replacing(name) as temporary:
            figure.savefig(temporary)
