"""Runs `.tflite` files on given integers and keeps every tensor; needs LiteRT and NumPy alone.

    python run_files.py FOLDER

For each NAME.tflite there, NAME.input.npz goes in, one array for each input, and
NAME.tensors.npz comes out, one for each tensor that has a value; by their names.
"""

import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def run(path):
    """Runs a file."""
    with np.load(path.with_suffix(".input.npz")) as arrays:
        given = {name.replace("|", "/"): arrays[name] for name in arrays}
    interpreter = Interpreter(str(path), num_threads=1, experimental_preserve_all_tensors=True)
    entries = interpreter.get_input_details()
    for entry in entries:
        interpreter.resize_tensor_input(entry["index"], given[entry["name"]].shape)
    interpreter.allocate_tensors()
    for entry in entries:
        interpreter.set_tensor(entry["index"], given[entry["name"]])
    interpreter.invoke()
    found = {}
    for detail in interpreter.get_tensor_details():
        try:
            found[detail["name"].replace("/", "|")] = interpreter.get_tensor(detail["index"])
        except ValueError:  # of what XNNPACK computes at once there is no tensor
            continue
    np.savez(path.with_suffix(".tensors.npz"), **found)


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.tflite")):
        run(file)
