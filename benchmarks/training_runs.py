"""The rows of a table of training runs: `train/main.py` for each, run or found done."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_float("epochs", None, "Epochs of the float stages. Default: the recipe.")
flags.DEFINE_float("learning_rate", None, "Their learning rate. Default: the recipe.")

MAIN = Path(__file__).parent.parent / "train" / "main.py"


def run(folder, options, source=None):
    """Runs one row, or finds it done, and returns its report.

    What another backend than TensorFlow has trained is exported with TensorFlow, where that is
    installed.

    Args:
        folder: The row's run folder.
        options: The row's flags; they come after `--epochs` and `--learning_rate`, and win.
        source: The folder of the run that its float network is taken from; otherwise that is
            trained, for as long as the flags say.
    """
    given = {"epochs": FLAGS.epochs, "learning_rate": FLAGS.learning_rate}
    if source is not None:
        given = {"init_from": source}
    first = [f"--{name}={value}" for name, value in given.items() if value is not None]
    command = [sys.executable, str(MAIN), f"--workdir={folder}", *first, *options]
    print(" ".join(command[1:]), flush=True)
    report = _run(command, folder, {})
    if "file" in report["metrics"] or importlib.util.find_spec("tensorflow") is None:
        return report
    return _run(command, folder, {"KERAS_BACKEND": "tensorflow"})


def _run(command, folder, environment):
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    if done.returncode:
        raise SystemExit(f"{folder} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
