"""PSNR of super-resolution files: Plain, Merged and RepQ, same budget for every row.

    python benchmarks/super_resolution.py --train=PATH --test_sets=set5:PATH,set14:PATH \
        --epochs=100 --seeds=0,1,2 --float_rates=plain:0.01,branches:0.002 \
        --qat_rates=plain:0.005,repq:0.002 --json=super_resolution.json -- --qat_epochs=30

Runs `train/main.py` for each row in `--workdir`; flags behind `--` go to each. The float
stage of a network is trained once for each seed and shared by its rows. Networks and methods
want different learning rates; the recipe's is the default. Interrupted, the command goes on
where it was. Figures are the PSNR of the luma, in dB, of the exported `.tflite`
file, and of the float network beside it. Under KERAS_BACKEND=jax networks are trained with JAX,
which takes two thirds of the time here, and exported with TensorFlow.
"""

import json
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import training_runs
from absl import app, flags

from repq_tf.files import write_atomically
from repq_tf.train.settings.checks import split_test_sets
from repq_tf.train.stages.report import versions

# The float network that a method begins with.
NETWORKS = {"plain": "plain", "merged": "branches", "repq": "branches"}
METHODS = tuple(NETWORKS)

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "ecbsr_m4c8", "A re-parameterized super-resolution network.")
flags.DEFINE_integer("scale", 2, "How many times larger images become.")
flags.DEFINE_string("train", None, "Folder of the training images.", required=True)
flags.DEFINE_string("test_sets", None, "NAME:PATH,NAME:PATH,... to test on.", required=True)
flags.DEFINE_list("bits", ["8", "4", "2"], "Bit widths.")
flags.DEFINE_list("seeds", ["0"], "Seeds; each is a whole table, and the mean is printed.")
flags.DEFINE_list("methods", list(METHODS), "Rows.")
flags.DEFINE_list("float_rates", [], "NETWORK:RATE of the float stage: plain, branches.")
flags.DEFINE_list("qat_rates", [], "METHOD:RATE of quantized training.")
flags.DEFINE_string("workdir", "runs/super_resolution", "Folder of the runs.")
flags.DEFINE_string("json", None, "Write the table to this file.")


def rows(extra):
    """Yields the figures of every row, one after the other."""
    common = [
        f"--model={FLAGS.model}",
        f"--scale={FLAGS.scale}",
        f"--dataset=folder:{FLAGS.train}",
        f"--test_sets={FLAGS.test_sets}",
        *extra,
    ]
    if unknown := sorted(set(FLAGS.methods) - set(METHODS)):
        raise app.UsageError(f"--methods has {unknown}; allowed: {', '.join(METHODS)}")
    float_rates = rates("float_rates", ("plain", "branches"))
    qat_rates = rates("qat_rates", METHODS)
    for seed in FLAGS.seeds:
        sources = {}
        for bits in FLAGS.bits:
            for method in FLAGS.methods:
                network = NETWORKS[method]
                options = [f"--method={method}", f"--bits={bits}", f"--seed={seed}"]
                if method in qat_rates:
                    options.append(f"--qat_learning_rate={qat_rates[method]}")
                if network in float_rates and network not in sources:
                    options.append(f"--learning_rate={float_rates[network]}")
                name = f"{FLAGS.model}-x{FLAGS.scale}-{method}-{bits}-seed{seed}"
                folder = Path(FLAGS.workdir) / name
                report = training_runs.run(folder, common + options, sources.get(network))
                if "file" not in report["metrics"]:
                    raise SystemExit(f"{folder} has no .tflite file: {report['notes']}")
                sources.setdefault(network, folder)
                yield {"method": method, "bits": bits, "seed": seed, **figures(report)}


def rates(flag, names):
    """The learning rates that a flag gives, by name."""
    found = {}
    for item in FLAGS[flag].value:
        name, _, rate = item.partition(":")
        if name not in names or not re.fullmatch(r"[\d.]+(e-?\d+)?", rate):
            allowed = ", ".join(f"{name}:RATE" for name in names)
            raise app.UsageError(f"--{flag} has {item!r}; allowed: {allowed}")
        found[name] = float(rate)
    return found


def figures(report):
    """What a report says about each test set, by the form of the network."""
    forms = {**report["references"], **report["metrics"]}
    return {form: found for form, found in forms.items() if form != "float_merged"}


def budget(extra):
    """What was trained for how long; where the images lie is nobody else's business."""
    names = ("model", "scale", "epochs", "learning_rate", "float_rates", "qat_rates")
    return {**{name: FLAGS[name].value for name in names}, "flags": extra}


def table(found):
    """The means over the seeds as Markdown."""
    sets = list(split_test_sets(FLAGS.test_sets))
    lines = [
        f"| bits | method | {' | '.join(sets)} | float: {' | '.join(sets)} |",
        "| --- " * (2 + 2 * len(sets)) + "|",
    ]
    bicubic = [f"{found[0]['bicubic'][f'{name}_psnr']:.2f}" for name in sets]
    lines.append(f"| | bicubic | {' | '.join(bicubic + [''] * len(sets))} |")
    for bits in FLAGS.bits:
        for method in FLAGS.methods:
            chosen = [r for r in found if (r["bits"], r["method"]) == (bits, method)]
            cells = [
                f"{np.mean([row[form][f'{name}_psnr'] for row in chosen]):.2f}"
                for form in ("file", "float")
                for name in sets
            ]
            lines.append(f"| {bits} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments):
    """Prints the table and writes it as JSON if asked to, after each row."""
    found = []
    for row in rows(arguments[1:]):
        found.append(row)
        if FLAGS.json:
            content = {**budget(arguments[1:]), "versions": versions(), "rows": found}
            write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())
    print(f"\nPSNR of the luma in dB, {FLAGS.model} x{FLAGS.scale}, .tflite files, seeds")
    print(f"{', '.join(FLAGS.seeds)}\n\n{table(found)}")


if __name__ == "__main__":
    app.run(main)
