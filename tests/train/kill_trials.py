"""Kills runs at random moments of every stage, and compares what they end with.

    python -m tests.train.kill_trials --trials=20 --json=kills.json
    python -m tests.train.kill_trials --task=super_resolution

One run of a tiny network goes from beginning to end. Each trial starts the same command in a
folder of its own, kills it (SIGKILL, with its children) at a random moment of a stage, and
starts it again. Trials take the stages in turn. Weights, integer files, histories and the
figures of the report must be equal, bit for bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from absl import app, flags

from repq_tf.files import write_atomically
from tests.train.commands import ROOT, TINY_MODELS, command

FLAGS = flags.FLAGS
STAGES = ("float", "quantize", "qat", "merge", "evaluate", "export", "measure", "draw")
# What a run ends with. Seconds, latencies, pictures and the dates in `.keras` files are not.
MODELS = ("float.keras", "quantized_start.keras", "quantized.keras", "merged.keras")
FILES = ("model.tflite", "model_float.tflite", "history_float.csv", "history_qat.csv")
FIGURES = ("headline", "metrics", "merge_error", "parity", "quantization", "data")
ARGUMENTS = ("--model=tiny_ac", "--epochs=3", "--qat_epochs=2", "--deterministic")
UPSCALING = (
    *("--model=tiny_ecbsr", "--epochs=9", "--qat_epochs=6", "--deterministic"),
    *("--patch_size=16", "--crops_per_image=64", "--calibration_images=16"),
)
TASKS = {"classification": ARGUMENTS, "super_resolution": UPSCALING}


def start(folder, arguments):
    """Starts the program in a process group of its own."""
    with open(f"{folder}.log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            command(*arguments, f"--workdir={folder}", before=[TINY_MODELS]),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def finish(folder, arguments):
    """Runs the program to its end."""
    process = start(folder, arguments)
    process.communicate()
    assert process.returncode == 0, Path(f"{folder}.log").read_text("utf-8")[-3000:]


def kill_in(stage, delay, folder, arguments):
    """Kills the program some seconds after a stage has begun."""
    process = start(folder, arguments)
    for line in process.stdout:
        if line.strip() == f"[{stage}]":
            time.sleep(delay)
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def differences(one, other):
    """Returns the names of what two finished runs do not have in common."""
    found = [name for name in FILES if (one / name).read_bytes() != (other / name).read_bytes()]
    found += [name for name in MODELS if _weights(one / name) != _weights(other / name)]
    reports = [json.loads((run / "report.json").read_text("utf-8")) for run in (one, other)]
    return found + [f"report: {key}" for key in FIGURES if reports[0][key] != reports[1][key]]


def _weights(path):
    with zipfile.ZipFile(path) as file:
        return file.read("model.weights.h5")


def run_trials(root, count, seed=0, arguments=ARGUMENTS):
    """Yields `(stage, delay, files at the moment of the kill, differences)` of each trial."""
    chance = random.Random(seed)
    finish(root / "whole", arguments)
    seconds = json.loads((root / "whole" / "seconds.json").read_text("utf-8"))
    for trial in range(count):
        stage = STAGES[trial % len(STAGES)]
        delay = chance.uniform(0, seconds[stage])
        folder = root / f"trial{trial}"
        kill_in(stage, delay, folder, arguments)
        files = sorted(path.name for path in folder.iterdir())
        finish(folder, arguments)
        yield stage, delay, files, differences(root / "whole", folder)


def main(_):
    """Prints a line for each trial, and ends with status 1 if anything differed."""
    root = Path(tempfile.mkdtemp())
    rows = []
    for stage, delay, files, differ in run_trials(
        root, FLAGS.trials, FLAGS.seed, TASKS[FLAGS.task]
    ):
        half = " ".join(name for name in files if name.startswith((".writing", "state")))
        result = ", ".join(differ) or "equal"
        print(f"{len(rows):3} {stage:9} after {delay:5.2f} s: {result} {half}", flush=True)
        rows.append({"stage": stage, "delay": delay, "files": files, "differ": differ})
    if FLAGS.json:
        write_atomically(FLAGS.json, json.dumps(rows, indent=2).encode())
    print(f"{sum(not row['differ'] for row in rows)} of {len(rows)} trials ended equal")
    sys.exit(any(row["differ"] for row in rows))


if __name__ == "__main__":
    flags.DEFINE_integer("trials", 20, "Number of runs that are killed.")
    flags.DEFINE_integer("seed", 0, "Seed of the moments.")
    flags.DEFINE_enum("task", "classification", list(TASKS), "What the network is for.")
    flags.DEFINE_string("json", None, "Write the table to this file.")
    app.run(main)
