"""TFDS sets that do not fit in memory, as `tf.data` pipelines.

TensorFlow is imported where it is used: training on another backend may be without it.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from repq_tf.keras_api import Tensor
from repq_tf.train.engines.batches import Batches
from repq_tf.train.tasks.classification.augment import stored_size
from repq_tf.train.tasks.classification.images import Images
from repq_tf.train.tasks.classification.randaugment import randaugment
from repq_tf.train.tasks.classification.regularization import NONE, Regularization
from repq_tf.train.tasks.classification.tfds_reading import Examples

_SHUFFLE_BUFFER = 10_000


class StreamedImages(Images):
    """Images that are decoded while training; an epoch's order is a function of the seed.

    Args:
        info: TFDS's information about the set.
        train: `tfds_reading.Examples` to train on.
        test: Those to test on.
        size: Height and width of the network's input.
    """

    def __init__(self, info: Any, train: Examples, test: Examples, size: int) -> None:
        super().__init__(
            name=info.full_name,
            class_names=tuple(info.features["label"].names),
            image_shape=(size, size, info.features["image"].shape[-1]),
            train_size=train.count,
            test_size=test.count,
            skipped=train.skipped + test.skipped,
        )
        self._train = train
        self._test = test

    def train_batches(  # noqa: D102
        self,
        epoch: int,
        batch_size: int,
        seed: int,
        kind: str,
        steps: int,
        regularization: Regularization = NONE,
        shard: tuple[int, int] = (0, 1),
    ) -> Batches:
        import tensorflow as tf

        worker, workers = shard
        order, changes = np.random.default_rng([seed, epoch]).integers(2**31 - 1, size=2)
        # The index decides the changes, and is that of the image among those of all workers.
        data = self._train.dataset(int(order), _SHUFFLE_BUFFER).enumerate()
        data = data.shard(workers, worker)

        def prepare(index: Tensor, example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            seeds = tf.stack([tf.cast(changes, tf.int64), index])
            image = self._augment(self._train.decode(example["image"]), kind, seeds)
            if regularization.randaugment:
                image = _randaugment(image, regularization.randaugment, seeds)
            return _scale(image), example["label"]

        data = data.map(prepare, tf.data.AUTOTUNE, deterministic=True)
        data = data.batch(batch_size // workers, drop_remainder=True).take(steps)
        if regularization.soft_labels:
            data = self._soften(data, regularization, [seed, epoch, 1, worker], steps)
        return data.apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)

    def test_batches(self, batch_size: int, one_hot: bool = False) -> Batches:  # noqa: D102
        import tensorflow as tf

        data = self._central(self._test)
        if one_hot:
            classes = len(self.class_names)
            data = data.map(lambda image, label: (image, tf.one_hot(label, classes)))
        count = math.ceil(self.test_size / batch_size)  # unknown where images are skipped
        data = data.batch(batch_size).apply(tf.data.experimental.assert_cardinality(count))
        return data.prefetch(2)

    def train_sample(self, count: int, seed: int) -> np.ndarray:  # noqa: D102
        data = self._central(self._train, seed).take(count)
        return np.stack([image for image, _ in data.as_numpy_iterator()])

    def test_sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        pairs = list(self._central(self._test).take(count).as_numpy_iterator())
        return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:  # noqa: D102
        with self._train.reading(), self._test.reading():
            yield

    def _central(self, examples: Examples, shuffle_seed: int | None = None) -> Any:
        """Returns a split's pictures as they are tested: resized, the middle cut out."""
        import tensorflow as tf

        size = self.image_shape[0]

        def prepare(example: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            image = _fit_square(examples.decode(example["image"]), stored_size(size))
            return _scale(tf.image.resize_with_crop_or_pad(image, size, size)), example["label"]

        data = examples.dataset(shuffle_seed, buffer=1)
        return data.map(prepare, tf.data.AUTOTUNE, deterministic=True)

    def _soften(
        self, data: Any, regularization: Regularization, seed: list[int], steps: int
    ) -> Any:
        """Mixes batches and makes their labels probabilities."""
        import tensorflow as tf

        classes = len(self.class_names)
        size = data.element_spec[1].shape[0]
        weights = regularization.draw_weights(steps * size, np.random.default_rng(seed))
        weights = tf.data.Dataset.from_tensor_slices(weights.reshape(steps, size))

        def soften(batch: tuple[Tensor, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
            images, labels = batch
            return regularization.soften(images, tf.one_hot(labels, classes), weights)

        return tf.data.Dataset.zip(data, weights).map(soften)

    def _augment(self, image: Tensor, kind: str, seed: Tensor) -> Tensor:
        """Does to one image what `augment.augment` does to a batch."""
        import tensorflow as tf

        size, channels = self.image_shape[0], self.image_shape[2]
        if kind == "resized_crop":
            begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
                tf.shape(image),
                tf.zeros((1, 0, 4)),
                seed,
                min_object_covered=0.0,
                aspect_ratio_range=(3 / 4, 4 / 3),
                area_range=(0.08, 1.0),
                max_attempts=10,
                use_image_if_no_bounding_boxes=True,
            )
            image = tf.slice(image, begin, extent)
            image = tf.image.resize(image, (size, size), antialias=True)
        else:
            image = _fit_square(image, size)
        if kind in ("crop", "crop_flip"):
            border = max(1, size // 8)
            image = tf.pad(image, ((border, border), (border, border), (0, 0)))
            image = tf.image.stateless_random_crop(image, (size, size, channels), seed)
        if kind in ("crop_flip", "resized_crop"):
            image = tf.image.stateless_random_flip_left_right(image, seed + 1)
        return tf.ensure_shape(image, self.image_shape)


def _fit_square(image: Tensor, size: int) -> Tensor:
    """Resizes the middle square of an image to height and width `size`."""
    import tensorflow as tf

    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    return tf.image.resize(image, (size, size), antialias=True)


def _randaugment(image: Tensor, count: int, seeds: Tensor) -> Tensor:
    """`randaugment.randaugment` for a tensor; `seeds` are two integers."""
    import tensorflow as tf

    def change(image: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return randaugment(image, count, np.random.default_rng([*seeds.tolist(), 2]))

    pixels = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
    changed = tf.numpy_function(change, [pixels, seeds], tf.uint8, stateful=False)
    return tf.ensure_shape(changed, image.shape)


def _scale(image: Tensor) -> Tensor:
    """`pictures.scale_pixels` for tensors."""
    import tensorflow as tf

    return tf.cast(image, tf.float32) / 127.5 - 1.0
