"""The training program as its user runs it: in a process of its own."""

import os
import subprocess
import sys
import time
from tempfile import TemporaryFile

from tests import forks
from tests.forks import text

ROOT = forks.ROOT

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
    return [sys.executable, "-c", _code(before), *args]


def _code(before):
    return "; ".join([*before, "from repq_tf.train import main; main.main()"])


def start(*args, output, errors, before=(), forked=False, **changed):
    """Starts the program.

    Args:
        *args: Its arguments.
        output: The open file that becomes its stdout.
        errors: The one that becomes its stderr.
        before: Code to be run before it.
        forked: Whether it begins with everything imported (`forks`).
        **changed: What is else in its environment.

    Returns:
        The process, a `subprocess.Popen` or of the same methods.
    """
    env = environment(**{"KERAS_BACKEND": "tensorflow", **changed})
    if forked:
        return forks.start(_code(before), args, env, output, errors)
    line = command(*args, before=before)
    return subprocess.Popen(line, cwd=ROOT, env=env, stdout=output, stderr=errors)


def run(*args, before=(), code=0, forked=False, **changed):
    """Runs the program to its end and returns what it printed, `(stdout, stderr)`."""
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        process = start(
            *args, output=output, errors=errors, before=before, forked=forked, **changed
        )
        try:
            status = process.wait(timeout=900)
        finally:
            process.kill()
            process.wait()
        printed, said = text(output), text(errors)
    assert status == code, said[-3000:]
    return printed, said


def run_until(path, *args, **options):
    """Runs the program and kills it as soon as a file is there; options are those of `run`."""
    with TemporaryFile("w+") as output:
        process = start(*args, output=output, errors=output, **options)
        try:
            end = time.monotonic() + 600
            while not os.path.exists(path):
                assert process.poll() is None, text(output)[-3000:]
                assert time.monotonic() < end, f"{path} was not written"
                time.sleep(0.005)
        finally:
            process.kill()
            process.wait()
