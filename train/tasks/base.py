"""The interface between the training pipeline and what a network is trained for."""

import abc
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from repq_tf.keras_api import keras
from repq_tf.train.engines.batches import Batches, as_fit_wants
from repq_tf.train.interpreter import Network

Columns: TypeAlias = Sequence[tuple[str, str, Callable[[float], str]]]


class Task(abc.ABC):
    """Data, model, loss, metrics and judgement of one kind of problem.

    Attributes:
        headline: Name of the metric by which models are compared.
        columns: What the report's table shows of them: list of `(title, metric, function from
            its value to text)`.
        steps_per_epoch: Training steps in one epoch.
        pixels: `(mean, std)`: the network's input is `(pixel - mean) / std`.
        labels: Names of the classes, in the order of the outputs, or None.
        meaning: What the outputs are, for whoever uses the file.
    """

    headline: str = "loss"
    columns: Columns = (("loss", "loss", "{:.4f}".format),)
    steps_per_epoch: int = 0
    pixels: tuple[float, float] = (127.5, 127.5)
    labels: Sequence[str] | None = None
    meaning: str | None = None

    @abc.abstractmethod
    def build(self, name: str, **options: Any) -> keras.Model:
        """Returns an untrained model for this data.

        Args:
            name: Name of a model in `repq_tf.models`.
            **options: Further arguments of the model.
        """

    @abc.abstractmethod
    def compile(
        self, model: keras.Model, optimizer: Any = None, jit_compile: bool | str | None = "auto"
    ) -> None:
        """Compiles a model with the loss and metrics; without an optimizer, to evaluate it."""

    @abc.abstractmethod
    def train_batches(self, epoch: int, steps: int, shard: tuple[int, int] = (0, 1)) -> Batches:
        """Returns the first `steps` training batches of an epoch, for `fit`.

        Args:
            epoch: Which epoch.
            steps: Number of batches.
            shard: `(worker, workers)`: of each batch, the worker's equal part.
        """

    @abc.abstractmethod
    def validation_batches(self, devices: int = 1) -> Batches:
        """Returns the test batches, for `fit` and `evaluate` on a number of devices."""

    @abc.abstractmethod
    def calibration_data(self, count: int) -> np.ndarray:
        """Returns `count` training inputs in one array."""

    @abc.abstractmethod
    def test_inputs(self, count: int) -> list[np.ndarray]:
        """Returns at most `count` test inputs, as a list of batches; each is one array."""

    @abc.abstractmethod
    def evaluate_file(self, network: Network, verbose: int = 0) -> dict[str, float]:
        """Returns metric name -> value of an `interpreter.Network` on all test data."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns name -> value about the data, for the report."""

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """Makes the network's input of uint8 images, rounded as in training."""
        mean, std = (np.float32(number) for number in self.pixels)
        return (images.astype("float32") - mean) / std

    def evaluate(self, model: keras.Model, verbose: int = 0) -> dict[str, float]:
        """Returns metric name -> value of a Keras model on all test data."""
        self.compile(model)
        batches = as_fit_wants(self.validation_batches())
        metrics = model.evaluate(batches, verbose=verbose, return_dict=True)
        return {name: float(value) for name, value in metrics.items()}

    def reading(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which errors of reading the data name the file."""
        return contextlib.nullcontext()

    def quantize_options(self) -> dict[str, Any]:
        """Returns further arguments of `repq_tf.quantize`."""
        return {}

    def references(self) -> dict[str, dict[str, float]]:
        """Returns name -> metrics of what the network has to beat, such as interpolation."""
        return {}

    def pictures(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Returns name -> uint8 image `(h, w, c)` of what a model does, after each epoch."""
        del model
        return {}

    def draw(
        self, networks: Mapping[str, Callable[[np.ndarray], np.ndarray]], folder: str
    ) -> list[str]:
        """Writes pictures of what networks do; returns their files.

        Args:
            networks: Name -> function from a batch of inputs to outputs, all NumPy: `"float"`,
                `"quantized"` and `"file"`.
            folder: The folder to write to.
        """
        del networks, folder
        return []
