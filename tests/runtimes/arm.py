"""Runs files on the emulated ARM and compares all that they store with a model.

`REPQ_ARM` is the folder that `setup_arm.sh` made; see `test_arm.py`.
"""

import os
import subprocess
from pathlib import Path

import numpy as np

from repq_tf.calibration.execution import run_batch
from repq_tf.graphs import read_native
from repq_tf.layers import Quantize
from repq_tf.quantization.grids import known_name, quantized_node
from repq_tf.quantization.runtimes import in_runtime
from repq_tf.tflite import reading
from tests.quantization.networks import array

FOLDER = os.environ.get("REPQ_ARM")
_SCRIPT = Path(__file__).parent / "run_files.py"


def write_input(qat, path, x):
    """Writes what a file of a model is given, beside it: the integers of images, by input."""
    graph, stored = read_native(qat), {}
    levels_of(graph, x, lambda name, levels, zero: stored.update({name: levels + zero}))
    _, model = reading.read(path)
    inputs = {end["name"]: end["type"] for end in reading.describe(model)["inputs"]}
    arrays = {
        name.replace("/", "|"): stored[name].astype(kind) for name, kind in inputs.items()
    }
    np.savez(path.with_suffix(".input.npz"), **arrays)


def levels_of(graph, x, tell):
    """Runs a model; `tell(name, levels, zero point)` of each stored tensor."""

    def observe(node, value):
        if isinstance(node.layer, Quantize):
            name = known_name(graph, quantized_node(graph, node))
            levels = np.rint(array(value / node.layer.step)).astype(int)
            tell(name, levels, node.layer.zero_point)

    if isinstance(x, list):
        x = dict(zip(graph.input_keys, x, strict=True))
    run_batch(graph, x, observe=observe)


def run_files(folder):
    """Runs the files of a folder on a Cortex-A53."""
    command = [f"{FOLDER}/python", "cortex-a53", _SCRIPT, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def differing(qat, runtime, container, path, x):
    """`{layer: how many values differ}` of a model in a runtime and a file that was run."""
    graph, found = in_runtime(read_native(qat), runtime, container), {}
    with np.load(path.with_suffix(".tensors.npz")) as arrays:
        tensors = dict(arrays)

    def compare(name, levels, zero):
        stored = tensors[name.replace("/", "|")].astype(int) - zero
        found[name] = int(np.count_nonzero(stored.ravel() != levels.ravel()))

    levels_of(graph, x, compare)
    return {name: count for name, count in found.items() if count}
