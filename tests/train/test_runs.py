import json
import os

import keras
import pytest

from repq_tf.layers import ReparamConv
from repq_tf.train.run import checkpoint, run_folder
from repq_tf.train.run.run_folder import RunFolder
from tests.train import kill_trials
from tests.train.commands import (
    TINY_MODELS,
    WITHOUT_PICTURES,
    WITHOUT_TENSORFLOW,
    run,
    run_until,
)

pytestmark = pytest.mark.slow

# A real network, small and short.
SMALL = ["--model=ac_resnet8", "--epochs=2", "--qat_epochs=1", "--calibration_images=32"]
TINY = ["--model=tiny_ac", "--epochs=3", "--qat_epochs=2", "--verbose=0"]


def _json(folder, name):
    with open(folder / name) as file:
        return json.load(file)


def _bytes(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    output, _ = run(*SMALL, f"--workdir={folder}", "--verbose=2")
    return folder, output


@pytest.mark.slow(80)
def test_every_stage_leaves_its_product(whole):
    folder, output = whole
    names = set(os.listdir(folder))
    for name in (
        "settings.json float.keras history_float.csv quantized_start.keras history_qat.csv"
        " quantized.keras merged.keras model.tflite model.json model_float.tflite summary.html"
        " analysis.html report.md report.json logs plots"
    ).split():
        assert name in names
    assert not [n for n in names if n.startswith((".", "state"))]
    assert {"curves.png", "weights.png", "predictions.png"} == set(os.listdir(folder / "plots"))
    assert set(os.listdir(folder / "logs")) == {"float", "qat"}
    assert "Epoch 1/2" in output and "stage1_conv1" in output


def test_the_file_is_the_model(whole):
    folder, output = whole
    report = _json(folder, "report.json")
    accuracy = {name: found["accuracy"] for name, found in report["metrics"].items()}
    assert accuracy["float"] == accuracy["float_merged"] > 0.15
    assert report["merge_error"] < 1e-3
    assert abs(accuracy["file"] - accuracy["quantized"]) <= 1 / 360
    assert accuracy["quantized"] > 0.4
    assert report["parity"]["top1_agreement"] >= 0.997
    assert report["files"]["model.tflite"] < 0.5 * report["files"]["model_float.tflite"]
    assert all(ms > 0 for ms in report["latency_ms"].values())
    assert f"{100 * accuracy['file']:.2f} %" in output


def test_the_merged_model_has_no_blocks(whole):
    folder, _ = whole
    merged = checkpoint.load_model(str(folder / "merged.keras"))
    assert not any(isinstance(layer, ReparamConv) for layer in merged.layers)
    assert sum(type(layer) is keras.layers.Conv2D for layer in merged.layers) == 9


def test_tensorboard_has_every_quantizer(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = whole
    events = EventAccumulator(str(folder / "logs" / "qat"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} < tags
    steps = {tag.removeprefix("step/") for tag in tags if tag.startswith("step/")}
    rates = {tag.removeprefix("clip_rate/") for tag in tags if tag.startswith("clip_rate/")}
    assert steps == rates and "stem/weight" in steps and len(steps) > 18
    assert all(events.Scalars(f"step/{name}")[0].value > 0 for name in steps)
    clipped = [events.Scalars(f"clip_rate/{name}")[0].value for name in rates]
    assert all(0 <= rate < 0.5 for rate in clipped) and max(clipped) > 0


def test_a_complete_run_is_only_reported_again(whole):
    folder, output = whole
    kept = [n for n in os.listdir(folder) if n.endswith((".keras", ".tflite", ".csv"))]
    before = {name: os.stat(folder / name).st_mtime_ns for name in kept}
    again, _ = run(*SMALL, f"--workdir={folder}", "--verbose=0")
    assert again in output
    assert before == {name: os.stat(folder / name).st_mtime_ns for name in kept}


def test_other_settings_do_not_touch_the_run(whole):
    folder, _ = whole
    before = _bytes(folder, "settings.json", "report.json", "float.keras")
    output, errors = run(*SMALL, f"--workdir={folder}", "--bits=4", code=1)
    assert "weight_bits: 8 there, 4 now" in errors and "Traceback" not in errors
    assert not output and before == _bytes(folder, *before)


@pytest.mark.slow(50)
def test_a_run_killed_three_times_ends_with_the_same_numbers(tmp_path):
    folder, other = tmp_path / "whole", tmp_path / "killed"
    how = {"before": [TINY_MODELS, WITHOUT_PICTURES], "forked": True}
    run(*kill_trials.ARGUMENTS, f"--workdir={folder}", **how)
    args = [*kill_trials.ARGUMENTS, f"--workdir={other}"]
    run_until(RunFolder(other).state("float"), *args, **how)
    assert not (other / run_folder.FLOAT).exists()
    run_until(RunFolder(other).state("qat"), *args, **how)
    assert not (other / run_folder.QUANTIZED).exists()
    run_until(other / run_folder.MERGED, *args, **how)
    assert not (other / "report.md").exists()
    run(*args, **how)
    assert not kill_trials.differences(folder, other)


@pytest.mark.slow(40)
def test_jax_without_tensorflow_runs_to_the_end(tmp_path):
    folder = tmp_path / "run"
    args = [*TINY, f"--workdir={folder}", "--c_array"]
    without = [WITHOUT_TENSORFLOW, TINY_MODELS, WITHOUT_PICTURES]
    run(*args, before=without, KERAS_BACKEND="jax")
    assert os.listdir(folder / "logs" / "qat")
    report = _json(folder, "report.json")
    assert report["versions"]["backend"] == "jax" and report["merge_error"] < 1e-3
    assert set(report["files"]) >= {
        "model.tflite",
        "model_float.tflite",
        "model.h",
        "merged.keras",
    }
    assert report["parity"]["equal_outputs"] == report["parity"]["top1_agreement"] == 1
    found = {name: metrics["accuracy"] for name, metrics in report["metrics"].items()}
    assert abs(found["file"] - found["quantized"]) < 1e-6
    assert set(report["latency_ms"]) == {"model.tflite", "model_float.tflite"}


@pytest.mark.slow(10)
def test_jax_without_tensorflow_refuses_what_needs_it(tmp_path):
    for flag, word in (
        ("--dataset=cifar10", "--dataset=cifar10 is read with TFDS, which needs tensorflow"),
        ("--strategy=mirrored", "--strategy=mirrored needs the TensorFlow backend"),
    ):
        _, errors = run(
            flag,
            f"--workdir={tmp_path / 'run'}",
            before=[WITHOUT_TENSORFLOW],
            KERAS_BACKEND="jax",
            code=1,
        )
        assert word in errors and "Traceback" not in errors
        assert not (tmp_path / "run").exists()
