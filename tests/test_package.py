"""The package as its user sees it first."""

import importlib
import re
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


def test_every_program_starts_and_is_listed():
    """`repq-train` and the others: what setup.py names is there, and `-m repq_tf` tells it."""
    setup = (Path(__file__).parents[1] / "setup.py").read_text()
    scripts = re.findall(r'"(repq-\w+ = [\w.]+:\w+)"', setup)
    listed = _output("repq_tf")
    assert len(scripts) == 3
    for line in scripts:
        name, _, place = line.partition(" = ")
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert f"{name} " in listed
        program = module.removesuffix(".__main__")
        assert f"python -m {program} " in listed
        assert "--verbose" in _output(program, "--help")


def _output(*arguments):
    """What `python -m` prints, which must not import Keras."""
    code = (
        "import atexit, runpy, sys\n"
        "check = lambda: sys.stdout.write('!KERAS!' if 'keras' in sys.modules else '')\n"
        "atexit.register(check)\n"
        "runpy.run_module(sys.argv[1], run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    assert output and "!KERAS!" not in output
    return output
