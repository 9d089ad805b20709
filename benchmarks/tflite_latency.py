"""Operators, size and latency of integer files, against float32 and against plain twins.

    python benchmarks/tflite_latency.py --models=ac_resnet18,repvgg_a0 --image_size=224

Each model is quantized and exported untrained, since neither operators nor latency depend on
the values of weights. Its int8 file, its float32 file and the int8 file of its plain twin then
run in turn in one process (LiteRT's default kernels, batch 1, one thread), in a new order
every round, so that the ratios are measured side by side. Times are medians.
"""

import functools
import json
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.train.interpreter import measure_latency
from repq_tf.train.stages.report import versions

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "models",
    [
        *("ac_resnet18", "orepa_resnet18", "dbb_resnet18", "repvgg_a0", "qarepvgg_a0"),
        *("mobileone_s0", "ecbsr_m4c8", "repvgg_sr_m4c16"),
    ],
    "Names of the networks (repq_tf.models).",
)
flags.DEFINE_integer("image_size", 224, "Height and width of the images.")
flags.DEFINE_integer("bits", 8, "Of weights and activations, 2 to 8.")
flags.DEFINE_float("width", None, "Multiplies all channel numbers of classifiers.")
flags.DEFINE_float("seconds", 20.0, "Time to spend on runs of each model.")
flags.DEFINE_string("json", None, "Write the table to this file.")

CALIBRATION_IMAGES = 4


def build(name):
    """An untrained network whose features have the scale of trained ones, and images for it."""
    keras.utils.set_random_seed(0)
    size = FLAGS.image_size
    if name in repq_tf.models.list_models("super_resolution"):
        model = repq_tf.models.build(name, input_shape=(size, size, 1))
    else:
        classes = 1000 if size > 64 else 10
        options = {} if FLAGS.width is None else {"width": FLAGS.width}
        model = repq_tf.models.build(name, classes, (size, size, 3), **options)
    shape = (CALIBRATION_IMAGES, *model.input_shape[1:])
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    repq_tf.reestimate_batch_norm(model, images)
    return model, images


def export(folder, name):
    """Writes a network's files; returns what is known of them."""
    paths = {
        kind: os.path.join(folder, f"{name}_{kind}.tflite") for kind in ("int8", "float32")
    }
    model, images = build(name)
    repq_tf.export_tflite_float(model, paths["float32"])
    quantized = repq_tf.quantize(model, bits=FLAGS.bits, calibration_data=images, verbose=False)
    return {
        "operators": repq_tf.export_tflite(quantized, paths["int8"]),
        "macs": repq_tf.summary(quantized).totals["macs"],
        "bytes": {kind: os.path.getsize(path) for kind, path in paths.items()},
        "paths": paths,
        "image": images[0],
    }


def measure(name, files):
    """A row of the table."""
    twin = repq_tf.models.plain_twin(name)
    mine, plain = files(name), files(twin)
    paths = [mine["paths"]["int8"], mine["paths"]["float32"], plain["paths"]["int8"]]
    times = measure_latency(paths, mine["image"], budget=FLAGS.seconds, most=100_000)
    integer, float32, plain_integer = times
    return {
        "model": name,
        "plain": twin,
        "operators": mine["operators"],
        "plain_operators": plain["operators"],
        "macs": mine["macs"],
        "bytes": mine["bytes"],
        "plain_bytes": plain["bytes"],
        "milliseconds": {"int8": integer, "float32": float32, "plain_int8": plain_integer},
        "float32_to_int8": float32 / integer,
        "int8_to_plain_int8": integer / plain_integer,
    }


HEAD = (
    *("model", "operators", "million MACs", "MB", "MB float32", "int8 ms", "float32 ms"),
    *("float32 / int8", "plain twin", "int8 / its int8"),
)


def cells(row):
    """A row as Markdown cells, under `HEAD`."""
    milliseconds, sizes = row["milliseconds"], row["bytes"]
    return (
        row["model"],
        ", ".join(f"{count} {name}" for name, count in row["operators"].items()),
        f"{row['macs'] / 1e6:.0f}",
        *(f"{sizes[kind] / 1e6:.2f}" for kind in ("int8", "float32")),
        *(f"{milliseconds[kind]:.3f}" for kind in ("int8", "float32")),
        f"{row['float32_to_int8']:.2f}",
        row["plain"],
        f"{row['int8_to_plain_int8']:.3f}",
    )


def show(line):
    """Prints a line of the table."""
    print(f"| {' | '.join(line)} |", flush=True)


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    rows = []
    show(HEAD)
    show(("-",) * len(HEAD))
    with tempfile.TemporaryDirectory() as folder:
        files = functools.cache(functools.partial(export, folder))
        for name in FLAGS.models:
            rows.append(measure(name, files))
            show(cells(rows[-1]))
    if FLAGS.json:
        names = "models", "image_size", "bits", "width", "seconds"
        settings = {name: FLAGS[name].value for name in names}
        content = {"settings": settings, "versions": versions(), "rows": rows}
        write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
