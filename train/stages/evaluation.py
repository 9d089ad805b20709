"""What the products of a run are worth: accuracy, parity, speed, pictures."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import repq_tf
from repq_tf.keras_api import keras
from repq_tf.train.errors import UserError
from repq_tf.train.interpreter import Network, measure_latency
from repq_tf.train.run import plots, text_files
from repq_tf.train.run.products import check_product, product, writing
from repq_tf.train.run.records import read_history
from repq_tf.train.run.run_folder import (
    ANALYSIS,
    C_ARRAY,
    EVALUATION,
    FILE,
    FINETUNED,
    FLOAT,
    FLOAT_FILE,
    MEASUREMENT,
    MERGED,
    METADATA,
    QUANTIZED,
    QUANTIZED_START,
    SUMMARY,
    WEIGHTS_PLOT,
    RunFolder,
)
from repq_tf.train.tasks.base import Task

_IMAGES = 500
_ANALYSIS_IMAGES = 16


def evaluate(run: RunFolder, task: Task, container: str = "int8", verbose: int = 0) -> None:
    """Judges the Keras models, and compares the float ones before and after merging.

    Args:
        run: The `run_folder.RunFolder`; gets the product `EVALUATION`.
        task: The `tasks.base.Task`.
        container: Of kernels of at most 4 bits, as for `repq_tf.export_tflite`.
        verbose: 0: nothing, 1: what is done and progress bars, 2: lines in their place.
    """
    say = _teller("evaluate", verbose)
    say("merging")
    model = run.read_model(FLOAT)
    merged = repq_tf.merge(model)
    inputs = task.test_inputs(_IMAGES)
    errors = [
        np.abs(_predict(model, batch) - _predict(merged, batch)).max() for batch in inputs
    ]
    say("summary")
    quantized = run.read_model(QUANTIZED)
    summary = repq_tf.summary(quantized, inputs[0].shape[1:], container)
    with writing(run.file(SUMMARY)) as path:
        summary.save(path)
    say("analysis")
    few = task.test_inputs(_ANALYSIS_IMAGES)
    analysis = repq_tf.analyze(quantized, few, verbose=bool(verbose))
    with writing(run.file(ANALYSIS)) as path:
        analysis.save(path)
    metrics = {}
    judge = {"float": model, "float_merged": merged, "quantized": quantized}
    if run.has(FINETUNED):
        judge["finetuned"] = run.read_model(FINETUNED)
    for name, judged in judge.items():
        say(name)
        metrics[name] = task.evaluate(judged, verbose)
    say("references")
    record = {
        "metrics": metrics,
        "references": task.references(),
        "merge_error": float(max(errors)),
        "quantization": str(repq_tf.quantization_table(quantized)),
        "summary": {"totals": summary.totals, "text": str(summary)},
        "analysis": {"warnings": analysis.warnings, "text": str(analysis)},
    }
    text_files.write_json(run.file(EVALUATION), record)


def _teller(stage: str, verbose: int) -> Callable[[str], None]:
    """Returns a function that tells which part of a stage begins."""
    return lambda part: print(f"[{stage}: {part}]", flush=True) if verbose else None


def export(
    run: RunFolder,
    task: Task,
    container: str = "int8",
    input_type: str | None = None,
    verbose: int = 0,
) -> None:
    """Writes the integer file and, to compare with, the merged float one.

    Args:
        run: The `run_folder.RunFolder`; gets the products `FILE` and `FLOAT_FILE`.
        task: The `tasks.base.Task`, which knows how pixels are normalised.
        container: Of kernels of at most 4 bits, as for `repq_tf.export_tflite`.
        input_type: Likewise; "uint8" for pixels.
        verbose: Whether to tell what is done.
    """
    say = _teller("export", verbose)
    say(FLOAT_FILE)
    with product(run.file(FLOAT_FILE)) as path:
        repq_tf.export_tflite_float(run.read_model(FLOAT), path)
    say(FILE)
    with product(run.file(FILE)) as path:
        repq_tf.export_tflite(
            run.read_model(QUANTIZED),
            path,
            input_type=input_type,
            container=container,
            pixels=task.normalize if input_type == "uint8" else None,
        )


def describe(run: RunFolder, task: Task) -> None:
    """Writes what a program has to know to use the integer file.

    Args:
        run: The `run_folder.RunFolder`; gets the product `METADATA`.
        task: The `tasks.base.Task`.
    """
    with product(run.file(METADATA)) as path:
        repq_tf.export_metadata(run.file(FILE), path, task.labels, task.pixels, task.meaning)


def write_c_array(run: RunFolder) -> None:
    """Writes the integer file as a C header.

    Args:
        run: The `run_folder.RunFolder`; gets the product `C_ARRAY`.

    Raises:
        UserError: If TensorFlow Lite Micro lacks one of its operators.
    """
    try:
        with product(run.file(C_ARRAY)) as path:
            repq_tf.export_c_array(run.file(FILE), path)
    except ValueError as error:
        raise UserError(f"--c_array is not possible: {error}") from error


def measure(run: RunFolder, task: Task, verbose: int = 0) -> None:
    """Judges and times the files, and compares the integer one with its Keras model.

    Args:
        run: The `run_folder.RunFolder`; gets the product `MEASUREMENT`.
        task: The `tasks.base.Task`.
        verbose: As for `evaluate`.
    """
    say = _teller("measure", verbose)
    files = [run.file(name) for name in (FLOAT_FILE, FILE)]
    for file in files:
        check_product(file)
    inputs = task.test_inputs(_IMAGES)
    network = Network(files[1], threads=os.cpu_count() or 1)
    quantized = run.read_model(QUANTIZED)
    say("parity")
    parity = repq_tf.check_parity(quantized, files[1], inputs)
    say("latency")
    latency = measure_latency(files, inputs[0][0])
    say("pictures")
    os.makedirs(run.plots, exist_ok=True)
    models = {"float": run.read_model(FLOAT), "quantized": quantized}
    networks = {name: functools.partial(_predict, model) for name, model in models.items()}
    task.draw({**networks, "file": network}, run.plots)
    say(FILE)
    record = {
        "metrics": {"file": task.evaluate_file(network, verbose)},
        "latency_shape": inputs[0].shape[1:],
        "latency_ms": dict(zip((FLOAT_FILE, FILE), latency, strict=True)),
        "parity": {**parity.as_dict(), "text": str(parity)},
    }
    text_files.write_json(run.file(MEASUREMENT), record)


def _predict(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    return model.predict(inputs, verbose=0)


def draw(run: RunFolder, verbose: int = 0) -> None:
    """Draws the training curves, and the merged weights before and after QAT.

    Args:
        run: The `run_folder.RunFolder`; gets the product `WEIGHTS_PLOT`.
        verbose: Whether to tell what is done.
    """
    say = _teller("draw", verbose)
    say("curves")
    os.makedirs(run.plots, exist_ok=True)
    stages = ("float", "finetune", "qat")
    histories = {stage: read_history(run.history(stage)) for stage in stages}
    histories = {stage: history for stage, history in histories.items() if history}
    if histories:
        plots.draw_curves(histories, os.path.join(run.plots, "curves.png"))
    say("weights")
    before = plots.merged_kernels(repq_tf.merge(run.load_model(QUANTIZED_START)))
    after = plots.merged_kernels(run.load_model(MERGED))
    plots.draw_weights(before, after, run.file(WEIGHTS_PLOT))


def read_results(run: RunFolder) -> dict[str, Any]:
    """Returns what `evaluate` and `measure` found, as one dictionary."""
    results = text_files.read_json(run.file(EVALUATION))
    measured = text_files.read_json(run.file(MEASUREMENT))
    metrics = {**results["metrics"], **measured["metrics"]}
    return {**results, **measured, "metrics": metrics}
