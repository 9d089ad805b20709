"""The stages of a run, from a float network to an integer file and its report.

Each stage reads its input from the run folder and leaves its product there, so a stage whose
product is there is not repeated, and what was measured is what lies on disk.
"""

import contextlib
import os
import time

import keras
import numpy as np

import repq_tf
from repq_tf import models, quantization, quantizers
from repq_tf.train import checkpoint, distribution, plots, report, run_folder
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network, measure_latency
from repq_tf.train.records import read_history
from repq_tf.train.tasks.classification import Classification
from repq_tf.train.training import train

_EVALUATION = "evaluation.json"
_MEASUREMENT = "measurement.json"
_WEIGHTS_PLOT = os.path.join("plots", "weights.png")
_PARITY_IMAGES = 500
_CLIP_RATE_IMAGES = 32


def run(settings, make_task=Classification):
    """Runs every stage that has not been run yet, and prints the report.

    Args:
        settings: `settings.Settings`, from `settings.resolve`.
        make_task: Function of the settings that returns the `tasks.base.Task`.

    Raises:
        UserError: For anything the user can mend, before time is spent on training; and
            when training diverges.
    """
    folder = run_folder.RunFolder(settings.workdir)
    folder.check(settings)
    _prepare_backend(settings)
    _Pipeline(settings, folder, make_task(settings)).run()


def _prepare_backend(settings):
    """Sets the precision, and makes TensorFlow on the CPU repeat itself exactly."""
    precision = settings.mixed_precision
    keras.config.set_dtype_policy("float32" if precision == "none" else f"mixed_{precision}")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        keras.utils.set_random_seed(settings.seed)
        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


class _Pipeline:
    """The stages, and what they share."""

    def __init__(self, settings, folder, task):
        self.settings = settings
        self.folder = folder
        self.task = task
        self.strategy = distribution.make_strategy(settings.strategy)
        self.notes = []
        self._check_devices()
        self.float_model = None
        if not folder.has(run_folder.FLOAT):
            self.float_model = self._build()

    def run(self):
        """Runs the stages in order."""
        self.folder.claim(self.settings)
        files = (run_folder.FILE, run_folder.FLOAT_FILE)
        self._stage("float", self._train_float, run_folder.FLOAT)
        self._stage("quantize", self._quantize, run_folder.QUANTIZED_START)
        self._stage("qat", self._train_quantized, run_folder.QUANTIZED)
        self._stage("merge", self._merge, run_folder.MERGED)
        self._stage("evaluate", self._evaluate, _EVALUATION)
        if keras.backend.backend() == "tensorflow":
            self._stage("export", self._export, *files)
        if all(self.folder.has(file) for file in files):
            self._stage("measure", self._measure, _MEASUREMENT)
        else:
            self.notes.append(
                "No .tflite file: the converter needs the TensorFlow backend. The same command"
                " with KERAS_BACKEND=tensorflow goes on from here."
            )
        self._stage("draw", self._draw, _WEIGHTS_PLOT)
        self._report()

    def _stage(self, name, work, *products):
        """Does a stage's work unless its products are there."""
        if all(self.folder.has(product) for product in products):
            self._say(f"{name}: done before")
            return
        self._say(name)
        begin = time.monotonic()
        seconds = work()
        self.folder.add_seconds(name, seconds or time.monotonic() - begin)

    def _say(self, text):
        if self.settings.verbose:
            print(f"[{text}]", flush=True)

    def _check_devices(self):
        count = distribution.replicas(self.strategy)
        if self.settings.batch_size % count:
            raise UserError(
                f"--batch_size must be a multiple of the number of devices, {count}."
                f" Received: {self.settings.batch_size}"
            )
        self.task.validation_batches(count)  # refuses too few images

    def _build(self):
        """Returns the float model, with the weights of `--init_from` if given."""
        settings = self.settings
        sync_bn = settings.sync_bn
        if sync_bn is None:
            sync_bn = distribution.replicas(self.strategy) > 1
        name = settings.model
        if settings.method == "plain":
            name = models.plain_twin(name)
        options = {"synchronized": sync_bn}
        if settings.branch_gamma:
            options["gamma_initializer"] = keras.initializers.Constant(settings.branch_gamma)
        keras.utils.set_random_seed(settings.seed)
        with distribution.scope(self.strategy):
            model = self.task.build(name, **options)
        if settings.init_from:
            path = settings.init_from
            if os.path.isdir(path):
                path = os.path.join(path, run_folder.FLOAT)
            if not os.path.isfile(path):
                raise UserError(
                    f"--init_from={settings.init_from} is a folder without"
                    f" {run_folder.FLOAT}: give the folder of a run whose float stage is done."
                )
            checkpoint.copy_weights(checkpoint.load_model(path), model, path)
        return model

    def _train_float(self):
        settings, model = self.settings, self.float_model
        seconds = None
        if not settings.init_from:
            seconds = self._train(model, "float", settings.epochs, settings.learning_rate)
        self._save(model, run_folder.FLOAT)
        self._forget_state("float")
        self.float_model = None
        return seconds

    def _quantize(self):
        settings, model = self.settings, self._load(run_folder.FLOAT)
        options = {}
        if settings.method == "repq":
            options["bn_statistics"] = settings.bn_statistics
        elif settings.method == "merged":
            model = repq_tf.merge(model)
            options["restore_batch_norm"] = settings.merged_bn
        try:
            model = repq_tf.quantize(
                model,
                weight_bits=settings.weight_bits,
                activation_bits=settings.activation_bits,
                calibration_data=self.task.calibration_data(settings.calibration_images),
                verbose=bool(settings.verbose),
                **options,
            )
        except ValueError as error:
            raise UserError(f"The float network cannot be quantized: {error}") from error
        self._save(model, run_folder.QUANTIZED_START)

    def _train_quantized(self):
        settings = self.settings
        with distribution.scope(self.strategy):
            model = self._load(run_folder.QUANTIZED_START)
        images = self.task.calibration_data(_CLIP_RATE_IMAGES)
        seconds = self._train(
            model,
            "qat",
            settings.qat_epochs,
            settings.qat_learning_rate,
            scalars=lambda model: _quantizer_scalars(model, images),
        )
        self._save(model, run_folder.QUANTIZED)
        self._forget_state("qat")
        return seconds

    def _train(self, model, stage, epochs, learning_rate, scalars=None):
        with distribution.scope(self.strategy):
            return train(
                model,
                self.task,
                self.settings,
                self.folder,
                stage,
                epochs,
                learning_rate,
                devices=distribution.replicas(self.strategy),
                scalars=scalars,
            )

    def _merge(self):
        self._save(repq_tf.merge(self._load(run_folder.QUANTIZED)), run_folder.MERGED)

    def _evaluate(self):
        """Judges the Keras models, and compares the float ones before and after merging."""
        model = self._load(run_folder.FLOAT)
        merged = repq_tf.merge(model)
        inputs = self.task.test_inputs(_PARITY_IMAGES)
        outputs = [m.predict(inputs, verbose=0) for m in (model, merged)]
        metrics = {
            "float": self.task.evaluate(model),
            "float_merged": self.task.evaluate(merged),
            "quantized": self.task.evaluate(self._load(run_folder.QUANTIZED)),
        }
        error = float(np.abs(outputs[0] - outputs[1]).max())
        record = {"metrics": metrics, "merge_error": error}
        checkpoint.write_json(self.folder.file(_EVALUATION), record)

    def _export(self):
        for name, source, export in (
            (run_folder.FLOAT_FILE, run_folder.FLOAT, repq_tf.export_tflite_float),
            (run_folder.FILE, run_folder.QUANTIZED, repq_tf.export_tflite),
        ):
            export(self._load(source), self.folder.file(name))

    def _measure(self):
        """Judges and times the files, and compares the integer one with its Keras model."""
        file = self.folder.file(run_folder.FILE)
        float_file = self.folder.file(run_folder.FLOAT_FILE)
        inputs = self.task.test_inputs(_PARITY_IMAGES)
        network = Network(file, threads=os.cpu_count() or 1)
        parity = repq_tf.check_parity(self._load(run_folder.QUANTIZED), file, inputs)
        latency = measure_latency([float_file, file], inputs[0])
        record = {
            "metrics": {"file": self.task.evaluate_file(network)},
            "latency_ms": {run_folder.FLOAT_FILE: latency[0], run_folder.FILE: latency[1]},
            "parity": {**parity.as_dict(), "text": str(parity)},
        }
        os.makedirs(self.folder.plots, exist_ok=True)
        self.task.draw(network, self.folder.plots)
        checkpoint.write_json(self.folder.file(_MEASUREMENT), record)

    def _draw(self):
        """Draws the training curves and the merged weights before and after QAT."""
        os.makedirs(self.folder.plots, exist_ok=True)
        histories = {name: read_history(self.folder.history(name)) for name in ("float", "qat")}
        histories = {name: history for name, history in histories.items() if history}
        if histories:
            plots.draw_curves(histories, os.path.join(self.folder.plots, "curves.png"))
        kernels = [
            plots.merged_kernels(repq_tf.merge(self._load(name)))
            for name in (run_folder.QUANTIZED_START, run_folder.QUANTIZED)
        ]
        plots.draw_weights(*kernels, self.folder.file(_WEIGHTS_PLOT))

    def _report(self):
        results = checkpoint.read_json(self.folder.file(_EVALUATION))
        if self.folder.has(_MEASUREMENT):
            measured = checkpoint.read_json(self.folder.file(_MEASUREMENT))
            metrics = {**results["metrics"], **measured["metrics"]}
            results = {**results, **measured, "metrics": metrics}
        if self.notes:
            results["notes"] = self.notes
        print(report.make_report(self.settings, self.task, self.folder, results))
        print(f"Report: {self.folder.file('report.md')}")

    def _load(self, name):
        """Loads a product of an earlier stage."""
        try:
            return checkpoint.load_model(self.folder.file(name))
        except UserError as error:
            raise UserError(f"{error} Delete it to repeat its stage.") from error

    def _save(self, model, name):
        checkpoint.save_model(model, self.folder.file(name))

    def _forget_state(self, stage):
        """Removes the checkpoint of a stage whose product is written."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.folder.state(stage))


def _quantizer_scalars(model, images):
    """Returns every quantizer's step size, averaged over channels, and clip rate."""
    steps = {
        f"step/{name}": float(np.mean(keras.ops.convert_to_numpy(quantizer.step)))
        for name, quantizer in quantizers.find(model).items()
    }
    rates = quantization.clip_rates(model, images)
    return steps | {f"clip_rate/{name}": float(rate) for name, rate in rates.items()}
