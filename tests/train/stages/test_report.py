import json
from pathlib import Path

import numpy as np
import pytest

from repq_tf.train.interpreter import _from_stored, _to_stored
from repq_tf.train.run import plots
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from repq_tf.train.stages import report
from repq_tf.train.tasks.classification import plots as class_plots
from repq_tf.train.tasks.classification.task import Classification

RESULTS = {
    "metrics": {
        "float": {"accuracy": 0.9812, "loss": 0.1},
        "float_merged": {"accuracy": 0.9812, "loss": 0.1},
        "quantized": {"accuracy": 0.975, "loss": 0.2},
    },
    "merge_error": 1.5e-6,
    "quantization": "layer  class",
}
MEASURED = {
    "latency_shape": (24, 32, 1),
    "latency_ms": {"model_float.tflite": 2.5, "model.tflite": 0.75},
    "parity": {"equal_outputs": 1.0, "text": "layer  outputs\nall equal"},
}


class _Task:
    headline = "accuracy"
    columns = Classification.columns

    def describe(self):
        return {"data": "some", "test images": 360}


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "model.tflite").write_bytes(bytes(250_000))
    (tmp_path / "model_float.tflite").write_bytes(bytes(1_000_000))
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "curves.png").write_bytes(b"")
    folder.add_seconds("float", 60.25)
    folder.add_seconds("qat", 30)
    return folder


def test_the_report_holds_what_was_found(run):
    metrics = {**RESULTS["metrics"], "file": {"accuracy": 0.9722}}
    text = report.make_report(
        resolve(bits=4), _Task(), run, {**RESULTS, **MEASURED, "metrics": metrics}
    )
    assert "| float, merged      | 98.12 %  | 1.00 MB | 2.5 ms  |" in text
    assert "| quantized, .tflite | 97.22 %  | 0.25 MB | 0.75 ms |" in text
    assert "4-bit weights" in text and "all equal" in text and "layer  outputs" not in text
    assert "Time: 90 s" in text
    with open(run.file("report.json")) as file:
        record = json.load(file)
    assert record["metrics"]["file"]["accuracy"] == 0.9722
    assert record["files"] == {"model.tflite": 250_000, "model_float.tflite": 1_000_000}
    assert record["latency_ms"]["model.tflite"] == 0.75
    assert record["seconds"] == {"float": 60.25, "qat": 30, "total": 90.25}
    assert record["settings"]["weight_bits"] == 4
    assert record["versions"]["keras"] and record["parity"]["equal_outputs"] == 1
    with open(run.file("report.md")) as file:
        page = file.read()
    for part in (
        "97.22 %",
        "an image of 24x32 (height x width)",
        "layer  class",
        "layer  outputs\nall equal",
        "(plots/curves.png)",
        "seed",
        "accuracy, share of images",
        "| stage | seconds |",
        "| file               | bytes   |",
    ):
        assert part in page
    assert "| |" not in page.replace(" ", "")  # every column has a head


def test_several_metrics_and_what_is_to_be_beaten(run):
    class Upscaling(_Task):
        headline = "set5_psnr"
        columns = (("set5 PSNR", "set5_psnr", "{:.2f} dB".format),)

    (Path(run.path) / "model.tflite").write_bytes(bytes(9_460))
    metrics = {
        name: {"set5_psnr": 30 + k, "set5_ssim": 0.9}
        for k, name in enumerate(("float", "float_merged", "quantized", "file"))
    }
    results = {**RESULTS, "metrics": metrics, "references": {"bicubic": {"set5_psnr": 28.5}}}
    settings = resolve(model="ecbsr_m4c8", scale=3)
    text = report.make_report(settings, Upscaling(), run, results)
    assert text.startswith("ecbsr_m4c8 x3, repq, 8-bit weights")
    assert "| model              | set5 PSNR | size    | latency |" in text
    assert "| bicubic            | 28.50 dB  |         |         |" in text
    assert "| quantized, .tflite | 33.00 dB  | 9.5 kB  |         |" in text
    with open(run.file("report.md")) as file:
        page = file.read()
    assert "| set5_psnr, dB | 28.5000 | 30.0000 " in page
    assert "| set5_ssim     |         | 0.9000 " in page


def test_floats_become_integers_and_back():
    grid = (0.5, -3)
    values = np.array([-100.0, -0.75, 0.0, 0.24, 0.25, 0.75, 100.0], "float32")
    stored = _to_stored(values, np.dtype(np.int8), grid)
    np.testing.assert_array_equal(stored, np.array([-128, -5, -3, -3, -3, -1, 127], "int8"))
    back = _from_stored(stored, grid)
    np.testing.assert_array_equal(back, [-62.5, -1, 0, 0, 0, 1, 65])
    plain = _to_stored(values, np.dtype(np.float32), (0.0, 0))
    np.testing.assert_array_equal(plain, values)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, by the names of their files."""
    figures, save = {}, plots.save

    def keep(figure, path):
        save(figure, path)
        figures[Path(path).stem] = figure

    for module in (plots, class_plots):
        monkeypatch.setattr(module, "save", keep)
    return figures


@pytest.mark.slow
def test_plots_are_pictures(tmp_path, figures):
    rng = np.random.default_rng(0)
    history = {
        "epoch": [1, 2],
        "loss": [2.0, 1.0],
        "val_loss": [2.5, 1.5],
        "learning_rate": [0.1, 0],
    }
    kernels = {f"layer{k}": rng.normal(size=(3, 3, 4, 4)) for k in range(5)}
    kernels["constant"] = np.zeros((1, 1, 2, 2))
    images = rng.uniform(-1, 1, (7, 8, 8, 1))
    labels = np.arange(7) % 2
    plots.draw_curves({"float": history, "qat": history}, str(tmp_path / "curves.png"))
    plots.draw_weights(kernels, kernels, str(tmp_path / "weights.png"))
    class_plots.draw_predictions(
        images, labels, labels[::-1], "ab", str(tmp_path / "guesses.png")
    )
    for name in ("curves", "weights", "guesses"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for axis in figures["weights"].axes[: len(kernels)]:
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("weight", "number of weights")
    assert figures["guesses"].get_suptitle() == "true / predicted"
    assert figures["guesses"].axes[1].get_title() == "b / b"


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_curves_are_seen_at_whole_epochs(tmp_path, figures, epochs):
    values = list(np.linspace(0.2, 0.8, epochs))
    names = ("loss", "accuracy", "psnr")
    history = {"epoch": list(range(1, epochs + 1)), **dict.fromkeys(names, values)}
    plots.draw_curves({"float": history}, str(tmp_path / "curves.png"))
    axes = figures["curves"].axes
    labels = ["loss", "accuracy, share of images", "psnr, dB"]
    assert [axis.get_ylabel() for axis in axes[:3]] == labels
    for axis in axes[:3]:
        low, high = axis.get_xlim()
        assert [x for x in axis.get_xticks() if low <= x <= high] == history["epoch"]
        assert axis.lines[0].get_marker() == "."
