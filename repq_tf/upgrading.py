"""`upgrade`: a trained network of convolutions becomes a quantized one that was trained so."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from repq_tf.arguments import boolean, number
from repq_tf.distillation import Distiller
from repq_tf.graphs import read_graph
from repq_tf.keras_api import keras
from repq_tf.quantization import check_quantizable, quantize
from repq_tf.reparameterization import reparameterize
from repq_tf.reparameterization.patterns import read_settings
from repq_tf.text import columns

_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of `upgrade`.

    Attributes:
        name: what was done.
        epochs: of training.
        loss: of training, at its end; None without any.
        metrics: name -> value on the validation data, behind the stage.
    """

    name: str
    epochs: int
    loss: float | None
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Upgrade:
    """What `upgrade` did; `str(upgrade)` is a table.

    Attributes:
        stages: in order.
    """

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for stage in self.stages for name in stage.metrics))
        lines = [("stage", "epochs", "training loss", *(f"validation {n}" for n in names))]
        for stage in self.stages:
            metrics = (_number(stage.metrics.get(name)) for name in names)
            epochs = str(stage.epochs) if stage.epochs else ""
            lines.append((stage.name, epochs, _number(stage.loss), *metrics))
        return columns(lines, range(1, len(names) + 3))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def upgrade(
    model: keras.Model,
    data: Any,
    validation_data: Any = None,
    bits: int = 8,
    epochs: int | tuple[int, int] = 10,
    teacher: keras.Model | None = None,
    block: Any = "acnet",
    loss: Any = None,
    metrics: Sequence[Any] = ("accuracy",),
    learning_rate: float = 0.01,
    batch_size: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    distill: float = 1.0,
    quantize_options: dict[str, Any] | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Returns a quantized network whose file has the operators of the given model's.

    The convolutions of the model, with the batch norms behind them, become re-parameterized
    blocks that compute the same (`repq_tf.reparameterize`); these are trained on in floating
    point, quantized (`repq_tf.quantize`) and trained on their merged kernels (RepQ) beside a
    teacher (`repq_tf.Distiller`). In the file each block is the one convolution that it was.
    The given model is left as it is.

    Both trainings are SGD with momentum, at rates that fall by a cosine from epoch to epoch.

    Args:
        model: a trained classifier; a Functional or Sequential Keras model with one input and
            one output, logits or their softmax.
        data: `(images, labels)`, or batches of them that can be read again and again: a
            `tf.data.Dataset`, a Keras `PyDataset`. The first images calibrate.
        validation_data: likewise, on which each stage is judged.
        bits: 2 to 8, of weights and activations.
        epochs: of training in floating point, and half as many quantized; or
            `(epochs in floating point, epochs quantized)`.
        teacher: a network that both trainings learn from beside the labels. Default: the
            quantized training's is the float network.
        block: what convolutions become, as the `settings` of `repq_tf.reparameterize`.
        loss: as for `compile`. Default: the one that the model is compiled with, or the
            cross-entropy of whole-numbered labels.
        metrics: as for `compile`.
        learning_rate: the highest of the float training; a tenth in quantized training.
        batch_size: of arrays, as for `fit`.
        callbacks: of both trainings; what they save is the network in training.
        distill: the weight of what is learned from the teacher; 0 for labels alone.
        quantize_options: further arguments of `repq_tf.quantize`.
        verbose: whether to show what is done.

    Returns:
        A quantized model, as `repq_tf.quantize` returns it, trained. Its attribute `upgrade` is
        the `Upgrade`, a report of the stages; it does not go into a `.keras` file.

    Raises:
        ValueError: an argument is bad, no convolution can become a block, or the model cannot
            be quantized; before anything is trained.

    Example:
        >>> quantized = repq_tf.upgrade(model, (images, labels), (test_images, test_labels))
        >>> print(quantized.upgrade)
        >>> repq_tf.export_tflite(quantized, "model.tflite")
    """
    boolean(verbose, "verbose")
    number(distill, "distill", least=0)
    number(learning_rate, "learning_rate", above=0)
    counts = _epochs(epochs)
    read_settings(block)
    options = {"bits": bits, "verbose": verbose, **(quantize_options or {})}
    named = ("bits", "weight_bits", "activation_bits")
    check_quantizable(model, **{name: options[name] for name in named if name in options})
    softmax = returns_probabilities(model)
    if teacher is not None:
        Distiller(model, teacher, from_logits=not softmax)  # refuses what cannot teach
    training = _Training(
        data, validation_data, _loss(model, loss, softmax), metrics, batch_size, callbacks
    )
    stages = [Stage("given", 0, None, training.judge(model))]
    found = reparameterize(model, block, calibration_data=data, verbose=verbose)

    def taught(student: keras.Model, by: keras.Model | None) -> keras.Model:
        if by is None or not distill:
            return _copy(student)
        return Distiller(student, by, logits_weight=distill, from_logits=not softmax)

    last = training.fit(taught(found, teacher), counts[0], learning_rate, verbose)
    stages.append(Stage("re-parameterized", counts[0], last, training.judge(found)))
    quantized = quantize(found, calibration_data=data, **options)
    stages.append(Stage("quantized", 0, None, training.judge(quantized)))
    learner = taught(quantized, found if teacher is None else teacher)
    last = training.fit(learner, counts[1], learning_rate / 10, verbose)
    stages.append(Stage("trained quantized", counts[1], last, training.judge(quantized)))
    quantized.upgrade = Upgrade(tuple(stages))
    if verbose:
        print(quantized.upgrade)
    return quantized


class _Training:
    """What all stages are trained and judged with."""

    def __init__(
        self,
        data: Any,
        validation_data: Any,
        loss: Any,
        metrics: Sequence[Any],
        batch_size: int | None,
        callbacks: Sequence[keras.callbacks.Callback],
    ) -> None:
        self._data = _named(data)
        # A `tf.data.Dataset` has an order of its own, and is not to be asked for another.
        self._data["shuffle"] = not hasattr(data, "element_spec")
        self._validation = validation_data
        self._loss = loss
        self._metrics = list(metrics)
        self._batch_size = batch_size
        self._callbacks = list(callbacks)

    def fit(
        self, model: keras.Model, epochs: int, learning_rate: float, verbose: bool
    ) -> float | None:
        """Trains a model, and returns the last epoch's loss."""
        if not epochs:
            return None
        optimizer = keras.optimizers.SGD(learning_rate, momentum=_MOMENTUM)
        model.compile(optimizer, self._loss, metrics=self._metrics)

        def rate(epoch: int, _: float) -> float:
            return learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2

        history = model.fit(
            **self._data,
            batch_size=self._batch_size,
            epochs=epochs,
            validation_data=self._validation,
            callbacks=[keras.callbacks.LearningRateScheduler(rate), *self._callbacks],
            verbose="auto" if verbose else 0,
        )
        return float(history.history["loss"][-1])

    def judge(self, model: keras.Model) -> dict[str, float]:
        """Returns a model's metrics on the validation data."""
        if self._validation is None:
            return {}
        judged, data = _copy(model), _named(self._validation)
        judged.compile(loss=self._loss, metrics=self._metrics)
        found = judged.evaluate(
            **data, batch_size=self._batch_size, verbose=0, return_dict=True
        )
        return {name: float(value) for name, value in found.items()}


def _named(data: Any) -> dict[str, Any]:
    """The arguments of `fit` or `evaluate` that are data."""
    if isinstance(data, tuple | list) and len(data) == 2:
        return {"x": data[0], "y": data[1]}
    return {"x": data}


def _copy(model: keras.Model) -> keras.Model:
    """A model of the same layers, to be compiled in place of one that is handed on."""
    return keras.Model(model.inputs, model.outputs[0], name=model.name)


def _epochs(epochs: Any) -> tuple[int, int]:
    pair = epochs if isinstance(epochs, tuple | list) else (epochs, None)
    whole = [isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in pair]
    if len(pair) != 2 or not whole[0] or not (whole[1] or pair[1] is None):
        raise ValueError(
            "epochs must be a whole number of at least 0, or a pair of them. Received: "
            f"{epochs!r}"
        )
    return pair[0], -(-pair[0] // 2) if pair[1] is None else pair[1]


def returns_probabilities(model: keras.Model) -> bool:
    """Whether a classifier returns probabilities; refuses what are no logits either."""
    graph = read_graph(model)
    count = len(graph.output_tensors)
    if count != 1:
        raise ValueError(f"model must have one output. Received: {count} of {model.name!r}")
    layer = graph.nodes[graph.output_tensors[0].node].layer
    activation = getattr(layer, "activation", keras.activations.linear)
    if isinstance(layer, keras.layers.Softmax) or activation is keras.activations.softmax:
        return True
    if activation is not keras.activations.linear:
        raise ValueError(
            "model must return logits or their softmax. Received: the output of layer"
            f" {layer.name!r} with the activation {activation.__name__}"
        )
    return False


def _loss(model: keras.Model, loss: Any, softmax: bool) -> Any:
    """The loss that was asked for, that of a compiled model, or the cross-entropy."""
    if loss is None:
        loss = getattr(model, "loss", None)
    if loss is None:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    return loss
