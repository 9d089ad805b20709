import json
import os

import numpy as np
import pytest

from repq_tf.train import checkpoint
from tests.train.commands import TINY, TWO_DEVICES, WITHOUT_TENSORFLOW, run

pytestmark = pytest.mark.slow

SHORT = [*TINY, "--epochs=1", "--qat_epochs=0.5", "--verbose=0"]


def _report(folder):
    with open(folder / "report.json") as file:
        return json.load(file)


def test_jax_trains_and_tensorflow_exports(tmp_path):
    folder = tmp_path / "run"
    args = [*SHORT, f"--workdir={folder}"]
    output, _ = run(*args, before=WITHOUT_TENSORFLOW, backend="jax")
    assert "No .tflite file" in output and "KERAS_BACKEND=tensorflow" in output
    assert (folder / "merged.keras").exists() and not (folder / "model.tflite").exists()
    assert os.listdir(folder / "logs" / "qat")
    trained = _report(folder)
    assert trained["versions"]["backend"] == "jax"
    assert trained["merge_error"] < 1e-3
    output, _ = run(*args)
    exported = _report(folder)
    assert exported["versions"]["backend"] == "tensorflow" and "notes" not in exported
    assert exported["metrics"]["float"] == trained["metrics"]["float"]
    assert exported["parity"]["top1_agreement"] >= 0.998
    accuracy = {name: found["accuracy"] for name, found in exported["metrics"].items()}
    assert abs(accuracy["file"] - accuracy["quantized"]) <= 1 / 360
    _, errors = run(
        "--dataset=cifar10",
        f"--workdir={tmp_path / 'cifar'}",
        before=WITHOUT_TENSORFLOW,
        backend="jax",
        code=1,
    )
    assert "--dataset=cifar10 is read with TFDS, which needs tensorflow" in errors


def test_two_devices(tmp_path):
    folder = tmp_path / "run"
    args = [*SHORT, "--strategy=mirrored", f"--workdir={folder}"]
    run(*args, before=TWO_DEVICES)
    report = _report(folder)
    assert (
        abs(report["metrics"]["file"]["accuracy"] - report["metrics"]["quantized"]["accuracy"])
        <= 1 / 360
    )
    model = checkpoint.load_model(str(folder / "float.keras"))
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert all(b.synchronized for b in model.layers if hasattr(b, "synchronized"))
    _, errors = run(*args, "--batch_size=63", "--workdir=elsewhere", before=TWO_DEVICES, code=1)
    assert "--batch_size must be a multiple of the number of devices, 2" in errors


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(tmp_path, precision):
    run(*SHORT, f"--mixed_precision={precision}", f"--workdir={tmp_path / 'run'}")
    report = _report(tmp_path / "run")
    accuracy = {name: found["accuracy"] for name, found in report["metrics"].items()}
    assert abs(accuracy["file"] - accuracy["quantized"]) <= 2 / 360
    model = checkpoint.load_model(str(tmp_path / "run" / "quantized.keras"))
    assert {str(w.dtype) for w in model.weights} <= {"float32"}
