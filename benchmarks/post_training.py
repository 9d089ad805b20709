"""Networks of `cifar10.py`, quantized without training: accuracy on all 10,000 test images.

    python benchmarks/post_training.py runs/cifar10/repvgg_tiny-0-float/float.keras \
        --data_dir=~/tensorflow_datasets --json=post_training.json

Each row's figure is that of the model's inference, which is its file's; the file is written and
compared with it on a hundred images, value by value. First and last layers have 8 bits where
those between have fewer.
"""

import functools
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of the TFDS data set.")
flags.DEFINE_integer("calibration_images", 512, "How many training images calibrate.")
flags.DEFINE_string("json", None, "Write the table to this file.")
_COMPARED = 100

after_training = functools.partial(repq_tf.post_training_quantize, verbose=False)
quantized = functools.partial(repq_tf.quantize, verbose=False)


def methods():
    """Yields the name of each row, and the function that makes it of a model."""
    for bits in (4, 3, 2):
        for levels in ("uniform", "odd"):
            for wide in (False, True):
                what = functools.partial(
                    quantized,
                    weight_bits=bits,
                    activation_bits=8,
                    weight_levels=levels,
                    wide_tap=wide,
                )
                yield f"W{bits}A8 {levels}{', wide tap' if wide else ''}", what
    for bits in (8, 4):
        for rounding in ("nearest", "descent"):
            what = functools.partial(after_training, bits=bits, rounding=rounding)
            yield f"W{bits}A{bits} per channel, {rounding}", what
    for equalize in (False, True):
        options = {"bits": 8, "per_channel": False, "equalize": equalize}
        name = "equalized" if equalize else "as it is"
        yield f"W8A8 per tensor, {name}", functools.partial(after_training, **options)
    what = functools.partial(
        after_training, weight_bits=4, activation_bits=8, rounding="descent"
    )
    yield "W4A8 descent", what


def _images():
    """Training images and the test set, normalised as `train/main.py` does it."""
    import tensorflow_datasets as tfds

    folder = FLAGS.data_dir and os.path.expanduser(FLAGS.data_dir)
    found = tfds.load("cifar10", split=["train", "test"], batch_size=-1, data_dir=folder)
    train, test = (tfds.as_numpy(part) for part in found)
    few = np.linspace(0, len(train["image"]) - 1, FLAGS.calibration_images).astype(int)
    inputs = ((x.astype("float32") - 128) / 128 for x in (train["image"][few], test["image"]))
    return (*inputs, test["label"])


def _accuracy(model, images, labels):
    return float((model.predict(images, 500, verbose=0).argmax(-1) == labels).mean())


def _differing(model, images):
    """How many values the file of a model computes otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        repq_tf.export_tflite(model, path)
        report = repq_tf.check_parity(model, path, images[:_COMPARED])
    return sum(part.different for part in (*report.layers, *report.outputs))


def main(arguments):
    """Prints a row after the other, and writes them as JSON if asked to."""
    if len(arguments) < 2:
        raise SystemExit("give one or more .keras files of float networks")
    calibration, images, labels = _images()
    rows = []
    for path in arguments[1:]:
        model = keras.models.load_model(path)
        name = model.name
        row = {"model": name, "method": "float", "accuracy": _accuracy(model, images, labels)}
        rows.append(row)
        print(f"{name:20} {'float':32} {row['accuracy']:.2%}", flush=True)
        for method, make in methods():
            made = make(model, calibration_data=calibration)
            row = {"model": name, "method": method}
            row["accuracy"] = _accuracy(made, images, labels)
            row["differing"] = _differing(made, images)
            rows.append(row)
            print(f"{name:20} {method:32} {row['accuracy']:.2%}", flush=True)
            if FLAGS.json:
                content = {"command": " ".join(sys.argv), "rows": rows}
                write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
