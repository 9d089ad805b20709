"""What `summary` says: rows of layers, and their sums."""

import dataclasses
import os
from typing import Any

from repq_tf.files import new_file, write_atomically
from repq_tf.inspection.costs import FLOAT_BITS
from repq_tf.inspection.render import as_html, as_text


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One layer of a `Summary`.

    Attributes:
        name: the layer.
        kind: its class.
        shape: of its output, without the batch.
        weight_bits: of its kernel; None in floating point or without one.
        bits_a_weight: the mean bits of its kernel's weights, those of wide taps and codebooks
            among them; or None.
        weight_entropy: the entropy of its kernel's levels in bits, the mean of its channels if
            these have steps of their own; or None.
        input_bits: of what it reads; None in floating point.
        output_bits: of what it makes; None in floating point.
        trained: trainable parameters, those of its branches and steps among them.
        deployed: parameters of the merged network.
        macs: multiply-accumulates of one image, deployed; None for a layer that is not known.
        size: bytes of the deployed parameters.
        weight_steps: `(smallest, largest)` step of its kernel, or None.
        output_step: the step of its output, or None.
    """

    name: str
    kind: str
    shape: tuple
    weight_bits: int | None
    bits_a_weight: float | None
    weight_entropy: float | None
    input_bits: int | None
    output_bits: int | None
    trained: int
    deployed: int
    macs: int | None
    size: int
    weight_steps: tuple | None
    output_step: float | None

    @property
    def bit_operations(self) -> int | None:
        """`macs * weight bits * input bits`, 32 for what is in floating point."""
        bits = (self.weight_bits or FLOAT_BITS) * (self.input_bits or FLOAT_BITS)
        return None if self.macs is None else self.macs * bits


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `summary` returns; `str(summary)` is the table.

    Attributes:
        name: the model.
        layers: a `LayerSummary` for each layer, in order.
    """

    name: str
    layers: tuple

    @property
    def totals(self) -> dict[str, int]:
        """`{"trained", "deployed", "macs", "bit_operations", "size"}`, sums over the layers."""
        names = ("trained", "deployed", "macs", "bit_operations", "size")
        return {name: sum(getattr(row, name) or 0 for row in self.layers) for name in names}

    @property
    def unknown(self) -> list[str]:
        """Names of the layers whose multiplications are not known and not in the totals."""
        return [row.name for row in self.layers if row.macs is None]

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain data, which JSON can hold."""
        rows = [
            {**dataclasses.asdict(row), "bit_operations": row.bit_operations}
            for row in self.layers
        ]
        return {
            "name": self.name,
            "layers": rows,
            "totals": self.totals,
            "unknown": self.unknown,
        }

    def __str__(self) -> str:
        return as_text(self)

    def html(self) -> str:
        """The table as a page that needs no other file."""
        return as_html(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `html()` to a file, whole or not at all."""
        write_atomically(new_file(path), self.html().encode())
