"""Image classification."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from keras.utils import PyDataset

from repq_tf import models
from repq_tf.files.pictures import scale_pixels
from repq_tf.keras_api import LEGACY, keras
from repq_tf.train.engines.batches import Batches, even_batch
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network
from repq_tf.train.settings import Settings
from repq_tf.train.tasks.base import Task
from repq_tf.train.tasks.classification.augment import resolve_kind
from repq_tf.train.tasks.classification.load import load_images
from repq_tf.train.tasks.classification.plots import draw_predictions
from repq_tf.train.tasks.classification.regularization import Regularization

# From this many classes on, the five best guesses count too.
_MANY_CLASSES = 100

# Height and width of the smallest images: of a single pixel there is nothing to convolve.
_LEAST = 2

# The report names this many of the images that could not be decoded.
_NAMED = 20


class Classification(Task):
    """Trains on labelled images; judges by the share of right answers.

    Args:
        settings: `settings.Settings` of the run.

    Raises:
        UserError: If there is no such data, fewer images than a batch holds, or single pixels.
    """

    headline = "accuracy"
    meaning = "logits"
    columns = (("accuracy", "accuracy", lambda share: f"{100 * share:.2f} %"),)

    def __init__(self, settings: Settings) -> None:
        images = load_images(
            settings.dataset,
            settings.data_dir,
            settings.image_size,
            settings.cache,
            settings.skip_bad_images,
        )
        for name, count in (("training", images.train_size), ("test", images.test_size)):
            if not count:
                raise UserError(f"--dataset={settings.dataset} has no {name} images.")
        height, width, _ = images.image_shape
        if min(height, width) < _LEAST:
            raise UserError(
                f"Images must be at least {_LEAST}x{_LEAST}; --image_size enlarges them."
                f" Received: --dataset={settings.dataset} with images of {height}x{width}"
            )
        if settings.batch_size > images.train_size:
            raise UserError(
                f"--batch_size must be at most the number of training images,"
                f" {images.train_size}. Received: {settings.batch_size}"
            )
        self.images = images
        self.labels = images.class_names
        self.steps_per_epoch = images.train_size // settings.batch_size
        self._batch_size = settings.batch_size
        self._seed = settings.seed
        self._width = settings.width
        self._augment = resolve_kind(settings.augment, images.image_shape[0])
        self._skips = settings.skip_bad_images
        self._regularization = Regularization(
            settings.randaugment, settings.mixup, settings.label_smoothing
        )

    def build(self, name: str, **options: Any) -> keras.Model:  # noqa: D102
        classes, shape = len(self.images.class_names), self.images.image_shape
        try:
            return models.build(
                name, classes=classes, input_shape=shape, width=self._width, **options
            )
        except ValueError as error:
            raise UserError(
                f"--model={name} cannot be built with --width={self._width} for images of"
                f" {'x'.join(map(str, shape))}: {error}"
            ) from error

    def compile(  # noqa: D102
        self, model: keras.Model, optimizer: Any = None, jit_compile: bool | str | None = "auto"
    ) -> None:
        if self._regularization.soft_labels:
            loss = keras.losses.CategoricalCrossentropy
            accuracy = keras.metrics.CategoricalAccuracy
            top_accuracy = keras.metrics.TopKCategoricalAccuracy
        else:
            loss = keras.losses.SparseCategoricalCrossentropy
            accuracy = keras.metrics.SparseCategoricalAccuracy
            top_accuracy = keras.metrics.SparseTopKCategoricalAccuracy
        metrics = [accuracy(name="accuracy")]
        if len(self.images.class_names) >= _MANY_CLASSES:
            metrics.append(top_accuracy(5, name="top_5_accuracy"))
        if LEGACY and jit_compile == "auto":  # a word that tf_keras does not know
            jit_compile = None
        model.compile(
            optimizer=optimizer or "sgd",
            loss=loss(from_logits=True),
            metrics=metrics,
            jit_compile=jit_compile,
        )

    def train_batches(self, epoch: int, steps: int, shard: tuple[int, int] = (0, 1)) -> Batches:  # noqa: D102
        return self.images.train_batches(
            epoch,
            self._batch_size,
            self._seed,
            self._augment,
            steps,
            self._regularization,
            shard,
        )

    def validation_batches(self, devices: int = 1) -> Batches:  # noqa: D102
        size = even_batch(self.images.test_size, self._batch_size, devices)
        return self.images.test_batches(size, self._regularization.soft_labels)

    def calibration_data(self, count: int) -> np.ndarray:  # noqa: D102
        return self.images.train_sample(count, self._seed)

    def test_inputs(self, count: int) -> list[np.ndarray]:  # noqa: D102
        return [self.images.test_sample(count)[0]]

    def evaluate_file(self, network: Network, verbose: int = 0) -> dict[str, float]:  # noqa: D102
        right = right_of_five = count = 0
        bar = keras.utils.Progbar(self.images.test_size, unit_name="image", verbose=verbose)
        for images, labels in self._test_pairs():
            logits = network(images)
            right += int((logits.argmax(-1) == labels).sum())
            best = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
            right_of_five += int((best == labels[:, None]).any(-1).sum())
            count += len(labels)
            bar.update(count)
        metrics = {"accuracy": right / count}
        if len(self.images.class_names) >= _MANY_CLASSES:
            metrics["top_5_accuracy"] = right_of_five / count
        return metrics

    def _test_pairs(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        batches = self.images.test_batches(self._batch_size)
        if isinstance(batches, PyDataset):
            return (batches[k] for k in range(len(batches)))
        return batches.as_numpy_iterator()

    def normalize(self, images: np.ndarray) -> np.ndarray:  # noqa: D102
        return scale_pixels(images)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        described = {
            "data": self.images.name,
            "classes": len(self.images.class_names),
            "input": f"{'x'.join(map(str, self.images.image_shape))}, pixels / 127.5 - 1",
            "training images": self.images.train_size,
            "test images": self.images.test_size,
            "augmentation": self._augment,
        }
        if self._skips:
            skipped = self.images.skipped
            described["skipped images"] = len(skipped)
            described["names of skipped images"] = ", ".join(skipped[:_NAMED]) or "none"
        return described

    def reading(self) -> contextlib.AbstractContextManager[Any]:  # noqa: D102
        return self.images.reading()

    def draw(  # noqa: D102
        self, networks: Mapping[str, Callable[[np.ndarray], np.ndarray]], folder: str
    ) -> list[str]:
        images, labels = self.images.test_sample(25)
        guesses = networks["file"](images).argmax(-1)
        path = os.path.join(folder, "predictions.png")
        draw_predictions(images, labels, guesses, self.images.class_names, path)
        return [path]
