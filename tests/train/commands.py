"""The training program as its user runs it: in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

MAIN = Path(__file__).parents[2] / "train" / "main.py"

# Small enough for a test: 8 to 64 channels, 2 + 2 epochs, 8x8 digits.
TINY = ["--width=0.125", "--epochs=2", "--qat_epochs=2", "--calibration_images=32"]

# What a process does before the program starts, in the name of a machine we do not have.
WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None"
TWO_DEVICES = (
    "import tensorflow as tf; d = tf.config.list_physical_devices('CPU');"
    " tf.config.set_logical_device_configuration("
    "d[0], [tf.config.LogicalDeviceConfiguration()] * 2)"
)


def command(*args, before=None):
    """Returns the command line, with code to be run before the program."""
    if before is None:
        return [sys.executable, str(MAIN), *args]
    code = f"{before}; from absl import app; from repq_tf.train import main; app.run(main.main)"
    return [sys.executable, "-c", code, *args]


def run(*args, before=None, backend="tensorflow", code=0):
    """Runs the program to its end and returns what it printed, `(stdout, stderr)`."""
    done = subprocess.run(
        command(*args, before=before),
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


def run_until(path, *args):
    """Runs the program and kills it as soon as a file is there."""
    process = subprocess.Popen(
        command(*args), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 600
        while not os.path.exists(path):
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < end, f"{path} was not written"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
