"""The training program as its user runs it: in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Code that runs before the program, in the name of a user or machine that we do not have.
TINY_MODELS = "from tests.train import tiny; tiny.register_models()"
WITHOUT_PICTURES = "from tests.train import tiny; tiny.draw_nothing()"
WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None"


def environment(**changed):
    """Returns a user's environment: this one, in which nobody asks TensorFlow for silence."""
    ours = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return {**ours, **changed}


def command(*args, before=()):
    """Returns the command line, with code to be run before the program."""
    if not before:
        return [sys.executable, str(ROOT / "train" / "main.py"), *args]
    start = "from repq_tf.train import main; main.main()"
    return [sys.executable, "-c", "; ".join([*before, start]), *args]


def run(*args, before=(), backend="tensorflow", code=0):
    """Runs the program to its end and returns what it printed, `(stdout, stderr)`."""
    done = subprocess.run(
        command(*args, before=before),
        cwd=ROOT,
        env=environment(KERAS_BACKEND=backend),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


def run_until(path, *args, before=()):
    """Runs the program and kills it as soon as a file is there."""
    process = subprocess.Popen(
        command(*args, before=before),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 600
        while not os.path.exists(path):
            assert process.poll() is None, process.stderr.read()[-3000:]
            assert time.monotonic() < end, f"{path} was not written"
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()  # closes what it wrote to
