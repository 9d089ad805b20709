"""What is done to a training batch beyond cropping and mirroring its images."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Regularization:
    """RandAugment, mixup and label smoothing.

    Attributes:
        randaugment: Random operations on each image (`randaugment.randaugment`).
        mixup: Alpha of the mixup of pairs of images (arXiv 1710.09412); 0 for none.
        label_smoothing: Share of each label that is spread over all classes.
    """

    randaugment: int = 0
    mixup: float = 0.0
    label_smoothing: float = 0.0

    @property
    def soft_labels(self) -> bool:
        """Whether labels are probabilities of the classes instead of their numbers."""
        return bool(self.mixup or self.label_smoothing)

    def draw_weights(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the weights of `count` images in their pairs, for `mix`."""
        if not self.mixup:
            return np.ones(count, "float32")
        return rng.beta(self.mixup, self.mixup, count).astype("float32")

    def soften(self, images: Any, one_hot: Any, weights: Any) -> tuple[Any, Any]:
        """Returns the images and soft labels of a batch: smoothed, then mixed.

        Image k is blended with image n - 1 - k of the batch, whose order is random.

        Args:
            images: Arrays or TensorFlow tensors `(n, h, w, c)`, as are the others.
            one_hot: Labels `(n, classes)`.
            weights: What `draw_weights` returned, `(n,)`.
        """
        classes = one_hot.shape[-1]
        labels = one_hot * (1 - self.label_smoothing) + self.label_smoothing / classes
        if not self.mixup:
            return images, labels
        weights = weights[:, None]
        labels = weights * labels + (1 - weights) * labels[::-1]
        weights = weights[..., None, None]
        return weights * images + (1 - weights) * images[::-1], labels


NONE = Regularization()
