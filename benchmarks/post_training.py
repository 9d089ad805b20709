"""Networks of `cifar10.py`, quantized without training: accuracy on all 10,000 test images.

    python benchmarks/post_training.py runs/cifar10/repvgg_tiny-0-float/float.keras \
        --data_dir=~/tensorflow_datasets --json=post_training.json

Each row's figure is that of the model's inference, which is its file's; the file is written and
compared with it on a hundred images, value by value. First and last layers have 8 bits where
those between have fewer. A network is called after the folder that it lies in. A row in the
JSON file is not computed again.
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


def methods(seen):
    """Yields the name of each row, and the function that makes it of a model.

    Args:
        seen: the images that calibrate.
    """
    after = functools.partial(after_training, calibration_data=seen)
    for bits in (8, 6, 4):
        for equalize in (False, True):
            for rounding in ("nearest", "descent"):
                options = {"bits": bits, "equalize": equalize, "rounding": rounding}
                name = f"{rounding}, equalized" if equalize else rounding
                for grids, per_channel in (("channel", True), ("tensor", False)):
                    what = functools.partial(after, per_channel=per_channel, **options)
                    yield f"W{bits}A{bits} per {grids}, {name}", what
    yield (
        "W8A8 per channel, nearest, output_error",
        functools.partial(after, weight_range="output_error", activation_range="output_error"),
    )
    for correct in (None, "bias", "analytic"):
        yield (
            f"W8A8 per channel, nearest, corrected by {correct}",
            functools.partial(after, correct=correct),
        )
    yield "W8A8 per channel, nearest, of no image", _of_no_image
    for rounding in ("nearest", "descent", "adaround", "adaquant"):
        what = functools.partial(after, weight_bits=4, activation_bits=8, rounding=rounding)
        yield f"W4A8 per channel, {rounding}", what
    for bits in (4, 3, 2):
        for levels in ("uniform", "odd"):
            for wide in (False, True):
                what = functools.partial(
                    quantized,
                    weight_bits=bits,
                    activation_bits=8,
                    weight_levels=levels,
                    wide_tap=wide,
                    calibration_data=seen,
                )
                yield f"W{bits}A8 {levels}{', wide tap' if wide else ''}", what


def _of_no_image(model):
    """Quantized by nothing but the network's own statistics."""
    made = repq_tf.synthesize_images(model, verbose=False)
    return after_training(model, calibration_data=made, correct="analytic")


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


def _rows(path, images, labels, calibration, done):
    """Yields one row of a network after the other; `done` are those there are already."""
    model, name = keras.models.load_model(path), Path(path).resolve().parent.name
    yield done.get((name, "float")) or {
        "model": name,
        "method": "float",
        "accuracy": _accuracy(model, images, labels),
    }
    for method, make in methods(calibration):
        found = done.get((name, method))
        if found is None:
            made = make(model)
            found = {"model": name, "method": method}
            found["accuracy"] = _accuracy(made, images, labels)
            found["differing"] = _differing(made, images)
        yield found


def main(arguments):
    """Prints a row after the other, and writes them as JSON if asked to."""
    if len(arguments) < 2:
        raise SystemExit("give one or more .keras files of float networks")
    calibration, images, labels = _images()
    rows = []
    if FLAGS.json and os.path.exists(FLAGS.json):
        rows = json.loads(Path(FLAGS.json).read_text(encoding="utf-8"))["rows"]
    done = {(row["model"], row["method"]): row for row in rows}
    for path in arguments[1:]:
        for row in _rows(path, images, labels, calibration, done):
            print(f"{row['model']:20} {row['method']:44} {row['accuracy']:.2%}", flush=True)
            done[row["model"], row["method"]] = row
            if FLAGS.json:
                content = {"command": " ".join(sys.argv), "rows": list(done.values())}
                write_atomically(FLAGS.json, json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    app.run(main)
