"""What `equalize` did, as data and as a table."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from repq_tf.keras_api import Array, keras
from repq_tf.post_training.network import Network
from repq_tf.post_training.scales import Group
from repq_tf.text import columns

_HEADER = ("made by", "read by", "scaled", "scales", "spread", "")


@dataclasses.dataclass(frozen=True)
class StreamScales:
    """What became of the channels that some layers make.

    Attributes:
        makers: names of the layers that make them; several where their sums share scales.
        readers: names of those that read them.
        channels: how many there are.
        scaled: how many of them have a scale.
        scales: the smallest and the largest scale that features were divided by; (1, 1) for
            none.
        spread: the ratio of the largest and the smallest range of their weights, the worse
            one of both sides, before and after; None where nothing is scaled.
        bounded: how many scales are larger than ranges alone would have them, since features
            must not grow.
        left: how many channels have weights too small for a scale.
        folded: how many channels were constants that moved into biases.
        kept: how many are constants that could not move.
        absorbed: how many begin at 0 now, what they never fell below being in biases.
        reason: why they were not scaled, or ""; of several the first.
    """

    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    scaled: int = 0
    scales: tuple[float, float] = (1.0, 1.0)
    spread: tuple[float, float] | None = None
    bounded: int = 0
    left: int = 0
    folded: int = 0
    kept: int = 0
    absorbed: int = 0
    reason: str = ""

    @property
    def note(self) -> str:
        """The rest of what there is to say, in words."""
        told = {
            "held by features": self.bounded,
            "left, too small": self.left,
            "constants folded": self.folded,
            "constants kept": self.kept,
            "biases absorbed": self.absorbed,
        }
        found = [f"{count} {what}" for what, count in told.items() if count]
        return "; ".join([self.reason, *found] if self.reason else found)


@dataclasses.dataclass(frozen=True)
class Equalization:
    """What `equalize` returns; `str(equalization)` is the table.

    Attributes:
        model: the equalized model.
        streams: a `StreamScales` for what each layer, or each stream of sums, makes.
        rounds: how often all layers were gone through.
        moved: by how much of itself a scale still moved in the last round.
        difference: the largest difference between the outputs of the given model and this
            one on some of the images, as a part of the largest output.
    """

    model: keras.Model
    streams: tuple[StreamScales, ...]
    rounds: int
    moved: float
    difference: float

    def __str__(self) -> str:
        lines = [_HEADER, *map(_line, self.streams)]
        foot = (
            f"{self.rounds} rounds, in the last of which a scale moved by {self.moved:.2%}; "
            f"outputs differ by {self.difference:.1e} of the largest"
        )
        return f"{columns(lines, right=(2, 3, 4))}\n{foot}"


def _line(row: StreamScales) -> tuple[str, ...]:
    scales = "{:.3g} - {:.3g}".format(*row.scales) if row.scaled else ""
    spread = "{:.3g} -> {:.3g}".format(*row.spread) if row.spread else ""
    scaled = f"{row.scaled} of {row.channels}"
    return _names(row.makers), _names(row.readers), scaled, scales, spread, row.note


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def describe(
    network: Network,
    groups: Sequence[Group],
    scales: Array,
    bounds: Array,
    folded: Mapping[str, tuple[int, int]],
    absorbed: Mapping[str, int],
) -> tuple[StreamScales, ...]:
    """The rows of an `Equalization`, in the order of the layers.

    Args:
        network: the `Network`.
        groups: its `Group`s.
        scales: logarithms of the scales of all streams.
        bounds: of their least ones.
        folded: by layer, how many constants were folded and how many kept.
        absorbed: by layer, how many biases were absorbed.
    """
    roots, reasons = network.streams.roots, network.streams.reasons
    order = {linear.name: number for number, linear in enumerate(network.maps)}
    found: dict[str, StreamScales] = {}
    for group in groups:
        makers, readers = (
            tuple(dict.fromkeys(side.weights.name for side in sides))
            for sides in (group.makers, group.readers)
        )
        alive, counts = group.alive, [folded.get(name, (0, 0)) for name in makers]
        constant = sum(map(sum, counts))
        row = StreamScales(
            makers,
            readers,
            channels=len(group.streams),
            scaled=int((scales[alive] != 0).sum()),
            bounded=int((bounds[alive] == scales[alive]).sum()),
            left=max(len(group.streams) - len(alive) - constant, 0),
            folded=sum(count for count, _ in counts),
            kept=sum(count for _, count in counts),
            absorbed=sum(absorbed.get(name, 0) for name in makers),
        )
        if row.scaled:
            ends = float(np.exp(scales[alive].min())), float(np.exp(scales[alive].max()))
            spread = _spread(group, np.zeros_like(scales)), _spread(group, scales)
            row = dataclasses.replace(row, scales=ends, spread=spread)
        found[makers[0]] = row
    told = {name for row in found.values() for name in row.makers}
    for linear in network.maps:
        why = [reasons[root] for root in roots[linear.outputs].tolist() if root in reasons]
        if linear.name not in told and why:
            row = StreamScales((linear.name,), (), len(linear.outputs), reason=why[0])
            found[linear.name] = row
    return tuple(found[name] for name in sorted(found, key=order.__getitem__))


def _spread(group: Group, scales: Array) -> float:
    """The ratio of the largest and the smallest range, the worse one of both sides."""
    return float(max(np.exp(np.ptp(side[group.alive])) for side in group.ranges(scales)))
