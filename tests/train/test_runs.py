import json
import os

import keras
import numpy as np
import pytest

from repq_tf.layers import ReparamConv
from repq_tf.train import checkpoint, run_folder
from repq_tf.train.run_folder import RunFolder
from tests.train.commands import TINY, run, run_until

pytestmark = pytest.mark.slow


def _json(folder, name):
    with open(folder / name) as file:
        return json.load(file)


def _bytes(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    output, _ = run(*TINY, f"--workdir={folder}", "--verbose=2")
    return folder, output


def test_every_stage_leaves_its_product(whole):
    folder, output = whole
    names = set(os.listdir(folder))
    for name in (
        "settings.json float.keras history_float.csv quantized_start.keras history_qat.csv"
        " quantized.keras merged.keras model.tflite model_float.tflite report.md report.json"
        " logs plots"
    ).split():
        assert name in names
    assert not [n for n in names if n.startswith((".", "state"))]
    assert {"curves.png", "weights.png", "predictions.png"} == set(os.listdir(folder / "plots"))
    assert set(os.listdir(folder / "logs")) == {"float", "qat"}
    assert "Epoch 1/2" in output and "stage1_block1_conv1" in output


def test_the_file_is_the_model(whole):
    folder, output = whole
    report = _json(folder, "report.json")
    accuracy = {name: found["accuracy"] for name, found in report["metrics"].items()}
    assert accuracy["float"] == accuracy["float_merged"] > 0.15
    assert report["merge_error"] < 1e-3
    assert abs(accuracy["file"] - accuracy["quantized"]) <= 1 / 360
    assert accuracy["quantized"] > 0.4
    assert report["parity"]["top1_agreement"] >= 0.998
    assert report["files"]["model.tflite"] < 0.5 * report["files"]["model_float.tflite"]
    assert all(ms > 0 for ms in report["latency_ms"].values())
    assert f"{100 * accuracy['file']:.2f} %" in output


def test_the_merged_model_has_no_blocks(whole):
    folder, _ = whole
    merged = checkpoint.load_model(str(folder / "merged.keras"))
    assert not any(isinstance(layer, ReparamConv) for layer in merged.layers)
    assert sum(type(layer) is keras.layers.Conv2D for layer in merged.layers) == 20


def test_tensorboard_has_every_quantizer(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = whole
    events = EventAccumulator(str(folder / "logs" / "qat"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for name in ("stem/weight", "image_quantize/activation", "logits/weight"):
        assert f"step/{name}" in tags and f"clip_rate/{name}" in tags
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"} < tags
    steps = events.Scalars("step/stem/weight")
    assert [e.step for e in steps] == [1, 2] and all(e.value > 0 for e in steps)
    rates = [e.value for tag in tags if tag.startswith("clip") for e in events.Scalars(tag)]
    assert all(0 <= rate < 0.5 for rate in rates) and max(rates) > 0


def test_a_complete_run_is_only_reported_again(whole):
    folder, output = whole
    kept = [n for n in os.listdir(folder) if n.endswith((".keras", ".tflite", ".csv"))]
    before = {name: os.stat(folder / name).st_mtime_ns for name in kept}
    again, _ = run(*TINY, f"--workdir={folder}", "--verbose=0")
    assert again.splitlines()[:8] == output.splitlines()[-len(again.splitlines()) :][:8]
    assert before == {name: os.stat(folder / name).st_mtime_ns for name in kept}


def test_other_settings_do_not_touch_the_run(whole):
    folder, _ = whole
    before = _bytes(folder, "settings.json", "report.json", "float.keras")
    output, errors = run(*TINY, f"--workdir={folder}", "--bits=4", code=1)
    assert "weight_bits: 8 there, 4 now" in errors and "Traceback" not in errors
    assert not output and before == _bytes(folder, *before)


def test_a_killed_run_ends_with_the_same_numbers(whole, tmp_path):
    folder, _ = whole
    other = tmp_path / "killed"
    args = [*TINY, f"--workdir={other}", "--verbose=0"]
    state = RunFolder(other).state
    run_until(state("float"), *args)
    assert not (other / run_folder.FLOAT).exists()
    run_until(state("qat"), *args)
    assert not (other / run_folder.QUANTIZED).exists()
    run_until(other / run_folder.MERGED, *args)
    run(*args)
    names = ["history_float.csv", "history_qat.csv", "model.tflite", "evaluation.json"]
    assert _bytes(folder, *names) == _bytes(other, *names)
    for name in (run_folder.FLOAT, run_folder.QUANTIZED, run_folder.MERGED):
        a, b = (checkpoint.load_model(str(f / name)).get_weights() for f in (folder, other))
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    reports = [_json(f, "report.json") for f in (folder, other)]
    for key in ("metrics", "merge_error", "parity"):
        assert reports[0][key] == reports[1][key]


def test_weights_of_an_earlier_run(whole, tmp_path):
    folder, _ = whole
    tiny = [flag for flag in TINY if not flag.startswith(("--epochs", "--qat_epochs"))]
    args = [*tiny, "--qat_epochs=0", f"--init_from={folder}", "--verbose=0"]
    run(*args, "--method=merged", "--weight_bits=4", f"--workdir={tmp_path / 'merged'}")
    a, b = (
        checkpoint.load_model(str(f / "float.keras")) for f in (folder, tmp_path / "merged")
    )
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not (tmp_path / "merged" / "history_float.csv").exists()
    report = _json(tmp_path / "merged", "report.json")
    assert report["settings"]["weight_bits"] == 4
    _, errors = run(*args, "--method=plain", f"--workdir={tmp_path / 'plain'}", code=1)
    assert "float.keras are not those of this model" in errors and "Traceback" not in errors
    assert not (tmp_path / "plain").exists()
