"""Slices of features: what `x[:, 1:, ::2]` is as a layer."""

from collections.abc import Sequence
from typing import TypeAlias, Unpack

from repq_tf.keras_api import Config, Layer, LayerOptions, Shape, Tensor, register

Limits: TypeAlias = Sequence[int | None]


@register
class Slice(Layer):
    """Every step-th value from a start to a stop, on each axis but the batch's.

    Args:
        starts: for each axis, as in a Python slice; None for the end that the step starts at.
        stops: likewise; None for the other end.
        steps: likewise, whole numbers other than 0; None for 1.

    Input: `(batch, ...)`. Output: `x[:, starts[0]:stops[0]:steps[0], ...]`.

    Example:
        >>> y = Slice((None, 1), (None, -1), (2, None))(keras.ops.ones((1, 4, 6)))
        >>> y.shape
        (1, 2, 4)
    """

    def __init__(
        self, starts: Limits, stops: Limits, steps: Limits, **kwargs: Unpack[LayerOptions]
    ) -> None:
        super().__init__(**kwargs)
        self.starts, self.stops, self.steps = map(tuple, (starts, stops, steps))
        if not len(self.starts) == len(self.stops) == len(self.steps):
            raise ValueError(
                "starts, stops and steps must have one number for each axis. Received: "
                f"starts={starts}, stops={stops}, steps={steps}"
            )
        if 0 in self.steps:
            raise ValueError(f"steps must not be 0. Received: {steps}")

    @property
    def slices(self) -> tuple[slice, ...]:
        """The slices of the axes, the batch's not among them."""
        return tuple(map(slice, self.starts, self.stops, self.steps))

    def call(self, x: Tensor) -> Tensor:
        """Takes the values."""
        return x[(slice(None), *self.slices)]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The shape of what is taken; None where an axis of unknown size is cut."""
        batch, *sizes = input_shape
        cut = [
            (None if part != slice(None) else size)
            if size is None
            else len(range(*part.indices(size)))
            for size, part in zip(sizes, self.slices, strict=True)
        ]
        return (batch, *cut)

    def get_config(self) -> Config:
        """The arguments of the constructor."""
        config = super().get_config()
        return {**config, "starts": self.starts, "stops": self.stops, "steps": self.steps}
