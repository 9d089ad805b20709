"""Accuracy of Plain, Merged and RepQ, same budget for every row.

    python benchmarks/accuracy.py --models=ac_resnet18 --bits=8,4 --json=accuracy.json -- \
        --dataset=digits --width=0.25

Runs `train/main.py` for each row in `--workdir`; flags behind `--` go to each. The float
stage of a network is trained once and shared by its rows. Interrupted, the command goes on.
Figures are those of the reports: the float network, the quantized Keras model, and the exported
file (where TensorFlow is installed).
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import training_runs
from absl import app, flags

import repq_tf
from repq_tf.branches import MODES
from repq_tf.files import write_atomically

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["ac_resnet18"], "Re-parameterized models.")
flags.DEFINE_list("bits", ["8", "4"], "Bit widths.")
flags.DEFINE_list("modes", list(MODES), "Values of --bn_statistics for RepQ.")
flags.DEFINE_string("workdir", "runs/accuracy", "Folder of the runs.")
flags.DEFINE_string("json", None, "Write the table to this file.")

FIGURES = ("float", "quantized", "file")


def rows(model, extra):
    """Yields `(method, bits, report)` of every row of one model."""
    sources = {}
    for bits in FLAGS.bits:
        methods = [("plain", None), ("merged", None), *(("repq", mode) for mode in FLAGS.modes)]
        for method, mode in methods:
            label = method if mode is None else f"{method} {mode}"
            options = [f"--model={model}", f"--method={method}", f"--bits={bits}", *extra]
            if mode is not None:
                options.append(f"--bn_statistics={mode}")
            network = "plain" if method == "plain" else "branches"
            folder = Path(FLAGS.workdir) / f"{model}-{label.replace(' ', '-')}-{bits}"
            report = training_runs.run(folder, options, sources.get(network))
            sources.setdefault(network, folder)
            yield label, bits, report


def main(arguments):
    """Prints the table and writes it as JSON if asked to."""
    table = []
    for model in FLAGS.models:
        repq_tf.models.plain_twin(model)  # an unknown name fails here, before any training
        for method, bits, report in rows(model, arguments[1:]):
            table.append({"model": model, "method": method, "bits": bits, **figures(report)})
    print("\n| model | method | bits | float | quantized | .tflite |")
    print("| --- " * 6 + "|")
    for row in table:
        cells = [f"{v:.2%}" if isinstance(v, float) else str(v) for v in row.values()]
        print(f"| {' | '.join(cells)} |")
    if FLAGS.json:
        content = {"command": " ".join(sys.argv), "rows": table}
        write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())


def figures(report):
    """The accuracies of a report; "-" where there is no file."""
    metrics = report["metrics"]
    return {key: metrics.get(key, {}).get("accuracy", "-") for key in FIGURES}


if __name__ == "__main__":
    app.run(main)
