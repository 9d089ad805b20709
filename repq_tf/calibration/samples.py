"""Samples of tensors that are too large to be kept."""

import numpy as np

from repq_tf.keras_api import Array, Tensor, ops

# How many values decide on a quantizer's step, and where the rarest of them do.
_VALUES = 2**16
_OF_TAILS = 2**20


class Sampler:
    """Values of a tensor that comes batch by batch: as many of every image, at random places.

    Args:
        name: of the layer that the tensor belongs to.
        images: the number of images to come.
        tensors: how many tensors share the step that the values decide on.
        rule: the range rule by which they do.
    """

    def __init__(
        self, name: str, images: int, tensors: int = 1, rule: str = "min_error"
    ) -> None:
        self._name, self._rule = name, rule
        values = _OF_TAILS if rule in ("percentile", "kl") else _VALUES
        self._of_an_image = max(1, values // (images * tensors))
        self._random = np.random.default_rng(0)
        self._chosen: list[Array] = []
        self._channels: list[Array] = []
        self._largest = np.float32(0)

    def add(self, batch: Tensor) -> None:
        """Draws from a batch `(images, ...)`."""
        values = ops.convert_to_numpy(batch).astype(np.float32, copy=False)
        channels = values.shape[-1]
        values = values.reshape(len(values), -1)
        ends = np.array([values.min(), values.max()], np.float32)
        if not np.isfinite(ends).all():
            raise ValueError(
                f"layer {self._name!r}: features there hold NaN or infinity on calibration data"
            )
        self._largest = max(self._largest, np.abs(ends).max())
        shape = (len(values), min(self._of_an_image, values.shape[1]))
        if shape == values.shape:
            places = np.broadcast_to(np.arange(shape[1]), shape)
        else:
            places = self._random.integers(0, values.shape[1], shape)
        self._chosen.append(np.take_along_axis(values, places, axis=1).ravel())
        self._channels.append((places % channels).ravel())

    def drawn(self) -> tuple[Array, Array]:
        """What was drawn, and the channel of each value."""
        return np.concatenate(self._chosen), np.concatenate(self._channels)

    def values(self, bits: int) -> Array:
        """What was drawn, for the step of a grid.

        The largest magnitude stands among them for `max`, at 16 bits, where clipping is the
        only error that counts, and where they are nothing but zeros. Else it does not: one
        that is the largest of a million would weigh as much as one of a thousand does.

        Args:
            bits: of the grid.
        """
        values = np.concatenate(self._chosen)
        clips = bits <= 8 and self._rule != "max" or self._rule == "percentile"
        return values if clips and values.any() else np.append(values, self._largest)
