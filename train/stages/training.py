"""One training stage: `fit`, epoch by epoch, able to continue after any interruption."""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from repq_tf.distillation import Distiller
from repq_tf.keras_api import backend, keras, to_numpy, variable_path
from repq_tf.train.engines.base import Engine
from repq_tf.train.errors import DivergedError
from repq_tf.train.run import checkpoint
from repq_tf.train.run.records import Records
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import Settings
from repq_tf.train.stages.optimizer import make_optimizer
from repq_tf.train.tasks.base import Task

_ALONE = Engine()


def train(
    model: keras.Model,
    task: Task,
    settings: Settings,
    run: RunFolder,
    stage: str,
    epochs: float,
    learning_rate: float,
    engine: Engine = _ALONE,
    scalars: Callable[[keras.Model], dict[str, float]] | None = None,
    teacher: keras.Model | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Trains a model; after each epoch all state is on disk.

    The batches of an epoch depend on the seed and the epoch, the learning rate on the
    optimizer's iteration; so a stage that was killed ends with the numbers it would have
    ended with.

    Args:
        model: The model, made in the scope of the engine.
        task: The `tasks.base.Task`.
        settings: The run's `settings.Settings`.
        run: The `run_folder.RunFolder`.
        stage: Name of the stage, for files and messages.
        epochs: Number of epochs; the last one may be a fraction.
        learning_rate: Peak learning rate.
        engine: The `engines.base.Engine`; its chief writes what goes to disk.
        scalars: Function of the model that returns name -> number, called after each epoch
            and logged beside the losses.
        teacher: A model whose outputs are learned beside the labels, made in the scope too.
        callbacks: Of `fit`, which is called for each epoch: they keep nothing from one to the
            next but by the model's variables.

    Returns:
        Seconds spent, those before an interruption included.

    Raises:
        DivergedError: If the loss or a weight is not finite any more.
    """
    per_epoch = task.steps_per_epoch
    total = max(1, round(epochs * per_epoch)) if epochs else 0
    optimizer = make_optimizer(
        model,
        learning_rate,
        max(1, total),
        warmup_steps=round(settings.warmup_epochs * per_epoch),
        weight_decay=settings.weight_decay,
        decay=settings.decay,
        kind=settings.optimizer,
        schedule=settings.schedule,
        step_rate=settings.step_rate,
    )
    learner = model
    if teacher is not None:
        learner = Distiller(model, teacher, temperature=settings.distill_temperature)
    task.compile(learner, optimizer, jit_compile=choose_jit(settings))
    optimizer = learner.optimizer
    optimizer.build(model.trainable_variables)
    state = run.state(stage)
    progress: dict[str, Any] = {"history": [], "scalars": [], "seconds": 0.0}
    if os.path.exists(state):
        progress = checkpoint.load_state(state, model, optimizer)
    records = None
    if engine.is_chief:
        records = Records(run, stage, progress["history"], progress["scalars"])
    guard = _Guard(stage, per_epoch, state)
    every = [*callbacks, guard]
    for epoch in range(len(progress["history"]), math.ceil(total / per_epoch)):
        begin = time.monotonic()
        row = _fit_epoch(learner, task, epoch, total, settings.verbose, engine, every)
        guard.check_weights(model, epoch)
        extra = scalars(model) if scalars else {}
        pictures = task.pictures(model)
        progress["history"].append(row)
        progress["scalars"].append(extra)
        progress["seconds"] += time.monotonic() - begin
        if records:
            records.add_pictures(epoch + 1, pictures)
        checkpoint.save_state(state, model, optimizer, progress, engine.is_chief)
        if records:
            records.add(row, extra)
    if records:
        records.close()
    return progress["seconds"]


def _fit_epoch(
    model: keras.Model,
    task: Task,
    epoch: int,
    total: int,
    verbose: int,
    engine: Engine,
    callbacks: list[keras.callbacks.Callback],
) -> dict[str, float]:
    """Trains one epoch and returns its losses and metrics."""
    per_epoch = task.steps_per_epoch
    steps = min(per_epoch, total - epoch * per_epoch)
    history = model.fit(
        **engine.fit_data(
            task.train_batches(epoch, steps, engine.shard),
            task.validation_batches(engine.devices),
        ),
        initial_epoch=epoch,
        epochs=math.ceil(total / per_epoch),
        shuffle=False,  # the batches come in the epoch's own order
        callbacks=callbacks,
        verbose=verbose,
    )
    row = {name: float(values[-1]) for name, values in history.history.items()}
    rate = float(to_numpy(model.optimizer.learning_rate))
    return {"epoch": epoch + 1, **row, "learning_rate": rate}


class _Guard(keras.callbacks.Callback):
    """Ends `fit` after one epoch, and at once when the loss is not finite."""

    def __init__(self, stage: str, per_epoch: int, state: str) -> None:
        super().__init__()
        self._stage = stage
        self._per_epoch = per_epoch
        self._state = state
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not math.isfinite(logs["loss"]):
            step = self._epoch * self._per_epoch + batch + 1
            self._stop(f"The loss is {logs['loss']} at step {step} (epoch {self._epoch + 1})")

    def check_weights(self, model: keras.Model, epoch: int) -> None:
        """Refuses to call a state good that holds weights which are not finite."""
        for variable in model.weights:
            if not np.isfinite(to_numpy(variable)).all():
                step = (epoch + 1) * self._per_epoch
                self._stop(
                    f"The weight {variable_path(variable)} is not finite after step {step}"
                )

    def _stop(self, what: str) -> None:
        if os.path.exists(self._state):
            good = f"Last good checkpoint: {self._state}, from which the same command goes on."
        else:
            good = "There is no checkpoint yet: it happened in the first epoch."
        raise DivergedError(
            f"{what} of stage {self._stage}. {good} A lower learning rate may help."
        )


def choose_jit(settings: Settings) -> bool | str:
    """Returns `jit_compile`: XLA wherever it pays, and TensorFlow's own kernels on the CPU."""
    if settings.jit_compile is not None:
        return settings.jit_compile
    if backend() != "tensorflow":
        return "auto"
    import tensorflow as tf

    return "auto" if tf.config.list_physical_devices("GPU") else False
