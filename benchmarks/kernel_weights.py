"""The weights of a trained RepVGG-type network: how identities stand out, and what grids do.

    python benchmarks/kernel_weights.py runs/cifar10/repvgg_tiny-0-float/float.keras \
        --json=benchmarks/results/kernel_weights.json

Of each block with an identity, the ratio of the largest weight to the root mean square, of its
3x3 branch and of the merged kernel; of the block where that is largest, the distribution of the
weights, each filter in units of its 3x3 branch's deviation, and the levels that a grid of 4
bits gives them. `docs/charts.py` draws them.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

from repq_tf.branches import Identity
from repq_tf.files import write_atomically
from repq_tf.quantizers import LSQ, WideTapLSQ

FLAGS = flags.FLAGS
flags.DEFINE_integer("bits", 4, "Bits of the grids.")
flags.DEFINE_string("json", None, "Write the figures to this file.")
_CELLS_A_DEVIATION = 2


def kernels(model):
    """Yields the name of each block with an identity, its 3x3 branch's kernel and its own."""
    for layer in model.layers:
        branches = getattr(getattr(layer, "expression", None), "children", ())
        if any(isinstance(part, Identity) for branch in branches for part in branch.walk()):
            yield layer.name, *(np.asarray(b.merge().kernel) for b in (branches[0], layer))


def peak(kernel):
    """The largest weight of a filter in its root mean squares, the mean over filters."""
    rows = np.abs(kernel.reshape(-1, kernel.shape[-1]))
    return float(np.mean(rows.max(0) / np.sqrt((rows**2).mean(0))))


def histogram(values):
    """Counts of values in cells of equal width, as `{middle of the cell: count}`."""
    cells, counts = np.unique(np.round(values * _CELLS_A_DEVIATION), return_counts=True)
    return {f"{c / _CELLS_A_DEVIATION:g}": int(n) for c, n in zip(cells, counts, strict=True)}


def levels(kernel, kind):
    """Counts of the levels that a quantizer, as it is before training, gives a kernel."""
    quantizer = kind(bits=FLAGS.bits, signed=True, channels=kernel.shape[-1])
    quantizer.build(None)
    quantizer.initialize(kernel)
    found, counts = np.unique(np.asarray(quantizer.integers(kernel)), return_counts=True)
    return {f"{level:g}": int(count) for level, count in zip(found, counts, strict=True)}


def main(arguments):
    """Prints the ratios, and writes all figures as JSON if asked to."""
    if len(arguments) != 2:
        raise SystemExit("One argument is needed: the float.keras of a RepVGG-type network.")
    model = keras.saving.load_model(arguments[1], compile=False)
    found = {name: (branch, merged) for name, branch, merged in kernels(model)}
    if not found:
        raise SystemExit(f"{arguments[1]} has no block with an identity.")
    peaks = {name: [peak(kernel) for kernel in pair] for name, pair in found.items()}
    for name, (branch, merged) in peaks.items():
        print(f"{name}: max/rms {branch:.1f} of the 3x3 branch, {merged:.1f} merged")
    chosen = max(peaks, key=lambda name: peaks[name][1])
    branch, merged = found[chosen]
    deviation = branch.std((0, 1, 2))
    record = {
        "command": f"python benchmarks/kernel_weights.py {Path(arguments[1]).name}",
        "model": model.name,
        "bits": FLAGS.bits,
        "max_over_rms": peaks,
        "layer": chosen,
        "branch": histogram(branch / deviation),
        "merged": histogram(merged / deviation),
        "uniform": levels(merged, LSQ),
        "wide_tap": levels(merged, WideTapLSQ),
    }
    if FLAGS.json:
        write_atomically(Path(FLAGS.json), (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    app.run(main)
