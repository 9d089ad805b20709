"""Runs the `case_*.py` here on tf_keras, in processes of their own: Keras is chosen once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks

HERE = Path(__file__).parent
LEGACY = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow"}


def run(*command, cwd=HERE.parent.parent, **environment):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=cwd,
    )


@pytest.mark.slow(100)
def test_cases():
    cases = sorted(str(path) for path in HERE.glob("case_*.py"))
    options = ["-p", "no:cacheprovider", "-n", "0", "-q", "-o", "python_files=case_*.py"]
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    status, output, _ = forks.run(code, *options, *cases, **LEGACY)
    assert status == 0, output[-5000:]
    assert len(cases) == 3
    assert "skipped" not in output


@pytest.mark.slow(20)
def test_the_example_of_the_documentation(tmp_path):
    page = (HERE.parent.parent / "docs" / "tfmot.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    done = run("-c", code, cwd=tmp_path, TF_USE_LEGACY_KERAS="0")  # it sets the variable itself
    assert done.returncode == 0, done.stderr[-3000:]
    assert "final outputs equal 100.000%" in done.stdout
    assert (tmp_path / "digits.tflite").stat().st_size > 10_000


@pytest.mark.slow(10)
def test_keras_3_first_says_what_to_set():
    script = """
import repq_tf, tf_keras
tensor = tf_keras.Input((8, 8, 3))
try:
    repq_tf.merge(tf_keras.Model(tensor, tf_keras.layers.Conv2D(3, 3)(tensor)))
except ValueError as error:
    print(error)
import repq_tf.tfmot
"""
    done = run("-c", script, TF_USE_LEGACY_KERAS="0")
    assert "start Python with TF_USE_LEGACY_KERAS=1" in done.stdout
    assert done.returncode == 1
    for part in ("ImportError", "Keras 3", "TF_USE_LEGACY_KERAS=1", "before the first import"):
        assert part in done.stderr


@pytest.mark.slow(10)
def test_the_reverse_says_what_to_set():
    script = """
import tensorflow_model_optimization, keras, repq_tf
def tried(function):
    try:
        function()
    except ValueError as error:
        print(error)
tensor = keras.Input((8, 8, 3))
tried(lambda: repq_tf.layers.ACBlock(8)(tensor))
tried(lambda: repq_tf.merge(keras.Model(tensor, keras.layers.Conv2D(3, 3)(tensor))))
"""
    done = run("-c", script, TF_USE_LEGACY_KERAS="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TF_USE_LEGACY_KERAS=0 and import repq_tf before") == 2


@pytest.mark.slow
def test_jax_is_refused():
    done = run("-c", "import repq_tf.tfmot", TF_USE_LEGACY_KERAS="1", KERAS_BACKEND="jax")
    assert "KERAS_BACKEND=tensorflow" in done.stderr


def test_nothing_imports_tfmot_unasked():
    script = "import sys, repq_tf; print('tensorflow_model_optimization' in sys.modules)"
    assert run("-c", script, **LEGACY).stdout.strip() == "False"
