"""The stages of a run, from a float network to an integer file and its report.

Each stage reads its input from the run folder and leaves its product there, so a stage whose
product is there is not repeated, and what is measured is what lies on disk.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

import repq_tf
from repq_tf import models
from repq_tf.keras_api import backend, keras
from repq_tf.quiet import quiet
from repq_tf.train.engines import choose
from repq_tf.train.engines.base import Engine
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint
from repq_tf.train.run.run_folder import (
    C_ARRAY,
    EVALUATION,
    FILE,
    FINETUNED,
    FLOAT,
    FLOAT_FILE,
    MEASUREMENT,
    MERGED,
    METADATA,
    PREPARED,
    QUANTIZED,
    QUANTIZED_START,
    REPORT,
    WEIGHTS_PLOT,
    RunFolder,
    find_float_model,
)
from repq_tf.train.settings import Settings
from repq_tf.train.stages import evaluation, network, precision, report, tfmot
from repq_tf.train.stages.training import train
from repq_tf.train.tasks.base import Task
from repq_tf.train.tasks.classification.task import Classification
from repq_tf.train.tasks.super_resolution.task import SuperResolution

_TASKS = {"classification": Classification, "super_resolution": SuperResolution}
_CLIP_RATE_IMAGES = 32


def run(settings: Settings, make_task: Callable[[Settings], Task] | None = None) -> None:
    """Runs every stage that has not been run yet, and prints the report.

    Args:
        settings: `settings.Settings`, from `settings.resolve`.
        make_task: Function of the settings that returns the `tasks.base.Task`; by default the
            one that they name.

    Raises:
        UserError: For anything the user can mend, before time is spent on training; and
            when training diverges.
    """
    folder = RunFolder(settings.workdir)
    folder.check(settings)
    if settings.quantizer == "tfmot":
        tfmot.check_importable()
    _make_repeatable(settings)
    engine = _make_engine(settings, folder)
    if not engine.is_chief:
        settings = dataclasses.replace(settings, verbose=0)
    task = (make_task or _TASKS[settings.task])(settings)
    with task.reading():
        _Pipeline(settings, folder, task, engine).run()


def _make_engine(settings: Settings, folder: RunFolder) -> Engine:
    """Returns the engine of `--strategy`, before anything is computed.

    What JAX has trained, on whatever devices, TensorFlow exports on one.
    """
    trained = all(map(folder.has, (FLOAT, QUANTIZED_START, QUANTIZED)))
    if trained and settings.strategy == "data_parallel" and backend() == "tensorflow":
        return Engine()
    return choose.make_engine(settings.strategy)


def _make_repeatable(settings: Settings) -> None:
    """Seeds everything, and makes TensorFlow repeat itself exactly where that is wanted."""
    with quiet():  # Keras imports TensorFlow, to seed it, whatever the backend
        keras.utils.set_random_seed(settings.seed)
    if backend() == "tensorflow":
        import tensorflow as tf

        wanted = settings.deterministic
        if wanted is None:
            wanted = not settings.jit_compile and not tf.config.list_physical_devices("GPU")
        if wanted:
            tf.config.experimental.enable_op_determinism()


class _Pipeline:
    """The stages, and what they share."""

    def __init__(
        self, settings: Settings, folder: RunFolder, task: Task, engine: Engine
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.task = task
        self.engine = engine
        self._check_devices()
        self.float_model = None
        if not folder.has(FLOAT):
            self._say("build")
            self.float_model = self._build()

    def run(self) -> None:
        """Runs the stages in order."""
        folder, task = self.folder, self.task
        self._open_folder()
        self._stage("float", self._train_float, FLOAT, together=True)
        if network.is_prepared(self.settings):
            self._stage("prepare", self._prepare, PREPARED)
            self._stage("finetune", self._finetune, FINETUNED, together=True)
        self._stage("quantize", self._quantize, QUANTIZED_START)
        self._stage("qat", self._train_quantized, QUANTIZED, together=True)
        self._stage("merge", self._merge, MERGED)
        container, input_type = self.settings.container, self.settings.input_type
        verbose = self.settings.verbose
        self._stage(
            "evaluate",
            lambda: evaluation.evaluate(folder, task, container, verbose),
            EVALUATION,
        )
        self._stage(
            "export",
            lambda: evaluation.export(folder, task, container, input_type, verbose),
            FILE,
            FLOAT_FILE,
        )
        self._stage("describe", lambda: evaluation.describe(folder, task), METADATA)
        if self.settings.c_array:
            self._stage("c_array", lambda: evaluation.write_c_array(folder), C_ARRAY)
        self._stage("measure", lambda: evaluation.measure(folder, task, verbose), MEASUREMENT)
        self._stage("draw", lambda: evaluation.draw(folder, verbose), WEIGHTS_PLOT)
        if not self.engine.is_chief:
            return
        results = evaluation.read_results(folder)
        print(report.make_report(self.settings, task, folder, results))
        print(f"Report: {folder.file(REPORT)}")

    def _open_folder(self) -> None:
        """The chief makes the folder its own, and the other workers find it."""
        if self.engine.is_chief:
            self.folder.claim(self.settings)
        self.engine.wait("run folder")
        self.folder.join(self.settings)

    def _stage(
        self,
        name: str,
        work: Callable[[], float | None],
        *products: str,
        together: bool = False,
    ) -> None:
        """Does a stage's work, which may return its seconds, unless its products are there.

        First deletes files derived from the old products.

        All workers train together; the chief does everything else while they wait.
        """
        chief, done = self.engine.is_chief, all(map(self.folder.has, products))
        self.engine.wait(f"begin of stage {name}")  # all have looked before anything changes
        if done:
            if chief:
                self.folder.check_products(products)
            self._say(f"{name}: done before")
            return
        self._say(name)
        if chief:
            self.folder.remove_made_of(products)
        begin = time.monotonic()
        seconds = work() if chief or together else None
        if chief:
            self.folder.add_seconds(name, seconds or time.monotonic() - begin)
        self.engine.wait(f"end of stage {name}")

    def _say(self, text: str) -> None:
        if self.settings.verbose:
            print(f"[{text}]", flush=True)

    def _check_devices(self) -> None:
        if self.settings.batch_size % self.engine.devices:
            raise UserError(
                "--batch_size must be a multiple of the number of devices,"
                f" {self.engine.devices}. Received: {self.settings.batch_size}"
            )
        self.task.validation_batches(self.engine.devices)  # refuses what cannot be shared

    def _build(self) -> keras.Model:
        """Returns the float model, with weights of `--init_from`, or that of `--upgrade`."""
        settings = self.settings
        name = settings.model
        if settings.method == "plain":
            name = models.plain_twin(name)
        sync_bn = self.engine.devices > 1 if settings.sync_bn is None else settings.sync_bn
        options = {"synchronized": sync_bn}
        if settings.branch_gamma:
            options["gamma_initializer"] = keras.initializers.Constant(settings.branch_gamma)
        keras.utils.set_random_seed(settings.seed)
        with self.engine.scope(), precision.policy(settings.mixed_precision):
            if settings.upgrade:
                model = network.upgraded(settings, self.task, sync_bn)
                model = precision.convert(model, settings.mixed_precision)
            else:
                model = self.task.build(name, **options)
        if settings.teacher_path:
            network.check_teacher(model, self._teacher(), settings)
        if settings.init_from:
            path = find_float_model(settings.init_from)
            checkpoint.copy_weights(checkpoint.load_model(path), model, path)
        network.check(model, settings)
        return model

    def _train_float(self) -> float | None:
        settings, model = self.settings, self.float_model
        seconds = None
        if not settings.init_from:
            seconds = self._train(model, "float", settings.epochs, settings.learning_rate)
        self._save_trained(model, FLOAT, "float")
        self.float_model = None
        return seconds

    def _prepare(self) -> None:
        model = self.folder.load_model(FLOAT)
        self.folder.save_model(network.prepare(model, self.settings, self.task), PREPARED)

    def _finetune(self) -> float:
        settings, model = self.settings, self.folder.load_model(PREPARED)
        keras.utils.set_random_seed(settings.seed)  # workers begin with equal variables
        with self.engine.scope():
            model = precision.convert(model, settings.mixed_precision)
        epochs, rate = settings.finetune_epochs, settings.qat_learning_rate
        options: dict[str, Any] = {}
        if settings.anneal_identities:
            anneal = repq_tf.callbacks.AnnealIdentities(math.ceil(epochs / 2))
            options = {"callbacks": [anneal], "teacher": self._teacher()}
        seconds = self._train(model, "finetune", epochs, rate, **options)
        self._save_trained(model, FINETUNED, "finetune")
        return seconds

    def _quantize(self) -> None:
        prepared = network.is_prepared(self.settings)
        model = self.folder.load_model(FINETUNED if prepared else FLOAT)
        model = network.quantize(model, self.settings, self.task)
        self.folder.save_model(model, QUANTIZED_START)

    def _train_quantized(self) -> float:
        settings = self.settings
        model = self.folder.load_model(QUANTIZED_START)
        keras.utils.set_random_seed(settings.seed)  # workers begin with equal variables
        with self.engine.scope():
            model = precision.convert(model, settings.mixed_precision)
        images = self.task.calibration_data(_CLIP_RATE_IMAGES)
        seconds = self._train(
            model,
            "qat",
            settings.qat_epochs,
            settings.qat_learning_rate,
            scalars=lambda model: network.scalars(self._own(model), images),
            teacher=self._teacher(),
        )
        self._save_trained(self._own(model), QUANTIZED, "qat")
        return seconds

    def _teacher(self) -> keras.Model | None:
        """The network of `--distill`; the run's own is as precise as what it teaches."""
        settings = self.settings
        if settings.distill is None:
            return None
        path = find_float_model(settings.teacher_path, "distill")
        with self.engine.scope():
            if path is not None:
                return checkpoint.load_model(path)
            return precision.convert(self.folder.load_model(FLOAT), settings.mixed_precision)

    def _own(self, model: keras.Model) -> keras.Model:
        """A quantized model in our own layers, whoever quantized it."""
        return tfmot.unwrap(model) if self.settings.quantizer == "tfmot" else model

    def _train(
        self,
        model: keras.Model,
        stage: str,
        epochs: float,
        learning_rate: float,
        **options: Any,
    ) -> float:
        with self.engine.scope():
            return train(
                model,
                self.task,
                self.settings,
                self.folder,
                stage,
                epochs,
                learning_rate,
                engine=self.engine,
                **options,
            )

    def _save_trained(self, model: keras.Model, name: str, stage: str) -> None:
        """Writes a training stage's product, which makes its checkpoint superfluous."""
        model = precision.convert(model, "none")  # read by all workers
        if not self.engine.is_chief:
            return
        self.folder.save_model(model, name)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.folder.state(stage))

    def _merge(self) -> None:
        merged = repq_tf.merge(self.folder.read_model(QUANTIZED))
        self.folder.save_model(merged, MERGED)
