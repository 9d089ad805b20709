"""The package as its user sees it first."""

import subprocess
import sys
from pathlib import Path

import repq_tf


def test_dir_lists_the_public_names():
    assert dir(repq_tf) == sorted(repq_tf.__all__)
    assert all(hasattr(repq_tf, name) for name in repq_tf.__all__)


def test_the_version_is_that_of_the_installation():
    command = [sys.executable, "setup.py", "--version"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == repq_tf.__version__
