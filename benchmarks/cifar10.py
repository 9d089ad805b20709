"""Small networks on CIFAR-10: float, and quantized by each method, the file's own accuracy.

    python benchmarks/cifar10.py --data_dir=~/tensorflow_datasets --json=cifar10.json

Runs `train/main.py` for each row in `--workdir`, with the recipe of CIFAR-10 unless flags say
otherwise; flags behind `--` go to each row. The float stage of a network is trained once and
shared by its rows; `--stages=float` trains nothing but these. Interrupted, the command goes on,
also in the middle of a training. Figures are those of the last epoch on all 10,000 test images.

A network without branches is trained by `plain` where `--methods` says `repq`, and has no other
method that needs branches. `none` is the float network quantized to 8 bits and not trained.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import training_runs
from absl import app, flags

from repq_tf.arguments import check_bits
from repq_tf.files import write_atomically
from repq_tf.model_names import MODELS, list_models

FLAGS = flags.FLAGS
_RESNETS = ["resnet8", "ac_resnet8", "dbb_resnet8", "orepa_resnet8", "repvgg_resnet8"]
# What each method is to `train/main.py`, of networks with branches and without.
METHODS = {
    "repq": ["--method=repq"],
    "wide": ["--method=repq", "--wide_tap"],
    "odd": ["--method=repq", "--weight_levels=odd"],
    "cluster": ["--method=repq", "--weight_levels=cluster"],
    "wide_odd": ["--method=repq", "--wide_tap", "--weight_levels=odd"],
    "merged": ["--method=merged"],
    "ptq": ["--method=ptq"],
    "ptq_descent": ["--method=ptq", "--rounding=descent"],
}
_PLAIN = {
    "repq": ["--method=plain"],
    "odd": ["--method=plain", "--weight_levels=odd"],
    "cluster": ["--method=plain", "--weight_levels=cluster"],
    "ptq": METHODS["ptq"],
    "ptq_descent": METHODS["ptq_descent"],
}
_CHAINS = ["repvgg_tiny_plain", "repvgg_tiny", "qarepvgg_tiny", "oabn_repvgg_tiny"]
flags.DEFINE_list("models", [*_RESNETS, *_CHAINS], "Networks.")
flags.DEFINE_list("bits", ["8", "4"], "Bit widths.")
flags.DEFINE_list("methods", ["repq", "merged"], f"Some of {', '.join(METHODS)}.")
flags.DEFINE_list("seeds", ["0"], "Seeds.")
flags.DEFINE_enum("stages", "all", ["all", "float"], "Whether to quantize.")
flags.DEFINE_string("data_dir", None, "Folder of the TFDS data set.")
flags.DEFINE_string("workdir", "runs/cifar10", "Folder of the runs.")
flags.DEFINE_string("json", None, "Write the table to this file.")

COLUMNS = ("model", "seed", "method", "bits", "float", "quantized", "file")


def rows(model, seed, extra):
    """Yields one row of the table after the other."""
    options = [f"--model={model}", f"--seed={seed}", "--dataset=cifar10", *extra]
    if FLAGS.data_dir:
        options.append(f"--data_dir={os.path.expanduser(FLAGS.data_dir)}")
    root = Path(FLAGS.workdir)
    source = root / f"{model}-{seed}-float"
    # Quantized without training; what follows takes its float network.
    yield row(model, seed, "none", "8", source, [*options, "--bits=8", "--qat_epochs=0"])
    if FLAGS.stages == "float":
        return
    kinds = _PLAIN if MODELS[model].plain == model else METHODS
    for bits in FLAGS.bits:
        for method in FLAGS.methods:
            if method in kinds:
                folder = root / f"{model}-{seed}-{method}-{bits}"
                given = [*options, f"--bits={bits}", *kinds[method]]
                yield row(model, seed, method, bits, folder, given, source)


def row(model, seed, method, bits, folder, options, source=None):
    """Runs a row, or finds it done."""
    metrics = training_runs.run(folder, options, source)["metrics"]
    figures = [metrics.get(name, {}).get("accuracy") for name in COLUMNS[4:]]
    return dict(zip(COLUMNS, (model, seed, method, bits, *figures), strict=True))


def _check():
    """Refuses what would end a later row, before the first is trained."""
    known = list_models("classification")
    for name in FLAGS.models:
        if name not in known:
            raise SystemExit(f"--models must be among {', '.join(known)}. Received: {name!r}")
    for name in FLAGS.methods:
        if name not in METHODS:
            raise SystemExit(
                f"--methods must be among {', '.join(METHODS)}. Received: {name!r}"
            )
    for flag in ("bits", "seeds"):
        for value in FLAGS[flag].value:
            if not value.isdecimal():
                raise SystemExit(f"--{flag} must be whole numbers. Received: {value!r}")
    for bits in FLAGS.bits:
        try:
            check_bits(int(bits), "--bits")
        except ValueError as error:
            raise SystemExit(str(error)) from error


def main(arguments):
    """Prints the table, and writes it as JSON after each row if asked to."""
    _check()
    table = []
    for model in FLAGS.models:
        for seed in FLAGS.seeds:
            for found in rows(model, seed, arguments[1:]):
                table.append(found)
                if FLAGS.json:
                    content = {"command": " ".join(sys.argv), "rows": table}
                    write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())
    print(f"\n| {' | '.join(COLUMNS)} |")
    print("| --- " * len(COLUMNS) + "|")
    for found in table:
        cells = (f"{v:.2%}" if isinstance(v, float) else str(v) for v in found.values())
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
