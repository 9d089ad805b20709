"""PSNR of super-resolution files: Plain, Merged and RepQ, same budget for every row.

    python benchmarks/super_resolution.py --train=PATH --test_sets=set5:PATH,set14:PATH \
        --epochs=100 --seeds=0,1,2 --json=super_resolution.json -- --qat_epochs=30

Runs `train/main.py` for each row in `--workdir`; flags behind `--` go to each. The float
stage of a network is trained once for each seed and shared by its rows. Interrupted, the
command goes on where it was. Figures are the PSNR of the luma, in dB, of the exported `.tflite`
file, and of the float network beside it. Under KERAS_BACKEND=jax networks are trained with JAX,
which takes two thirds of the time here, and exported with TensorFlow.
"""

import json
from pathlib import Path

import numpy as np
import training_runs
from absl import app, flags

from repq_tf.files import write_atomically
from repq_tf.train.checks import METHODS, split_test_sets
from repq_tf.train.report import versions

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "ecbsr_m4c8", "A re-parameterized super-resolution network.")
flags.DEFINE_integer("scale", 2, "How many times larger images become.")
flags.DEFINE_string("train", None, "Folder of the training images.", required=True)
flags.DEFINE_string("test_sets", None, "NAME:PATH,NAME:PATH,... to test on.", required=True)
flags.DEFINE_list("bits", ["8", "4", "2"], "Bit widths.")
flags.DEFINE_list("seeds", ["0"], "Seeds; each is a whole table, and the mean is printed.")
flags.DEFINE_list("methods", list(METHODS), "Rows.")
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
    for seed in FLAGS.seeds:
        sources = {}
        for bits in FLAGS.bits:
            for method in FLAGS.methods:
                network = "plain" if method == "plain" else "branches"
                options = [f"--method={method}", f"--bits={bits}", f"--seed={seed}"]
                name = f"{FLAGS.model}-x{FLAGS.scale}-{method}-{bits}-seed{seed}"
                folder = Path(FLAGS.workdir) / name
                report = training_runs.run(folder, common + options, sources.get(network))
                if "file" not in report["metrics"]:
                    raise SystemExit(f"{folder} has no .tflite file: {report['notes']}")
                sources.setdefault(network, folder)
                yield {"method": method, "bits": bits, "seed": seed, **figures(report)}


def figures(report):
    """What a report says about each test set, by the form of the network."""
    forms = {**report["references"], **report["metrics"]}
    return {form: found for form, found in forms.items() if form != "float_merged"}


def budget(extra):
    """What was trained for how long; where the images lie is nobody else's business."""
    names = ("model", "scale", "epochs", "learning_rate")
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
