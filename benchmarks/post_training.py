r"""Networks of `cifar10.py`, quantized without training: accuracy on all 10,000 test images.

    python benchmarks/post_training.py runs/cifar10/repvgg_tiny-0-float/float.keras \
        --data_dir=~/tensorflow_datasets --json=post_training.json
    python benchmarks/post_training.py resnet8 --calibration_images=1024 \
        --only='(W4A4|W3A3|W2A4) per channel, \w+$'

A quantized row's figure is that of its `.tflite` file, which is compared with the model on a
hundred images, value by value. First and last layers have 8 bits where those between have
fewer. A network is one of the library's that come trained on CIFAR-10, or a file, which is
called after the folder that it lies in. A row in the JSON file is not computed again.
"""

import functools
import json
import os
import re
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.train.interpreter import Network

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "Folder of the TFDS data set.")
flags.DEFINE_integer("calibration_images", 512, "How many training images calibrate.")
flags.DEFINE_string("only", "", "A regular expression of the rows to compute.")
flags.DEFINE_string("json", None, "Write the table to this file.")
_COMPARED = 100

after_training = functools.partial(repq_tf.post_training_quantize, verbose=False)
quantized = functools.partial(repq_tf.quantize, verbose=False)


def methods(seen):
    """Yields the name of each row, and the function that makes it of a model.

    Args:
        seen: the images that calibrate.
    """
    # Ranges are those of least error of the values where a row does not name others.
    given = {"weight_range": "min_error", "activation_range": "min_error"}
    after = functools.partial(
        after_training, calibration_data=seen, calibration_images=None, **given
    )
    for bits in (8, 6, 4):
        for equalize in (False, True):
            for rounding in ("nearest", "descent"):
                options = {"bits": bits, "equalize": equalize, "rounding": rounding}
                name = f"{rounding}, equalized" if equalize else rounding
                for grids, per_channel in (("channel", True), ("tensor", False)):
                    what = functools.partial(after, per_channel=per_channel, **options)
                    yield f"W{bits}A{bits} per {grids}, {name}", what
    for bits in (8, 6, 4):
        for rounding in ("nearest", "descent"):
            what = functools.partial(
                after, bits=bits, rounding=rounding, activation_range="output_error"
            )
            name = f"W{bits}A{bits} per channel, {rounding}, output_error"
            yield f"{name} of features", what
            yield name, functools.partial(what, weight_range="output_error")
    for correct in (None, "bias", "analytic"):
        yield (
            f"W8A8 per channel, nearest, corrected by {correct}",
            functools.partial(after, correct=correct),
        )
    yield "W8A8 per channel, nearest, of no image", _of_no_image
    for weights, features in ((4, 8), (4, 4), (3, 3), (2, 4)):
        roundings = ("nearest", "descent", "adaround", "adaquant")
        for rounding in roundings[2:] if weights == features == 4 else roundings:
            options = {"weight_bits": weights, "activation_bits": features}
            what = functools.partial(after, rounding=rounding, **options)
            yield f"W{weights}A{features} per channel, {rounding}", what
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


def _read():
    """Training images and the test set, pixels as they are."""
    import tensorflow_datasets as tfds

    folder = FLAGS.data_dir and os.path.expanduser(FLAGS.data_dir)
    found = tfds.load("cifar10", split=["train", "test"], batch_size=-1, data_dir=folder)
    train, test = (tfds.as_numpy(part) for part in found)
    few = np.linspace(0, len(train["image"]) - 1, FLAGS.calibration_images).astype(int)
    return train["image"][few], test["image"], test["label"]


def _network(source):
    """A network, its name, and the mean and the deviation of the pixels that it takes."""
    if source.endswith(".keras"):  # as `train/main.py` normalises
        name = Path(source).resolve().parent.name
        return keras.models.load_model(source), name, (127.5, 127.5)
    model = getattr(repq_tf.models, source)(weights="cifar10")
    return model, source, repq_tf.models.model_card(source, "cifar10")["pixels"]


def _accuracy(outputs, labels):
    return float((outputs.argmax(-1) == labels).mean())


def _judged(model, images, labels):
    """The accuracy of a model's file, and how many values it computes otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.tflite")
        repq_tf.export_tflite(model, path)
        accuracy = _accuracy(Network(path)(images), labels)
        report = repq_tf.check_parity(model, path, images[:_COMPARED], verbose=False)
    differing = sum(part.different for part in (*report.layers, *report.outputs))
    return {"accuracy": accuracy, "differing": differing}


def _rows(source, pixels, labels, done):
    """Yields one row of a network after the other; `done` are those there are already."""
    model, name, (mean, deviation) = _network(source)
    calibration, images = ((x.astype("float32") - mean) / deviation for x in pixels)
    yield done.get((name, "float")) or {
        "model": name,
        "method": "float",
        "accuracy": _accuracy(model.predict(images, 500, verbose=0), labels),
    }
    for method, make in methods(calibration):
        found = done.get((name, method))
        if found is None and re.search(FLAGS.only, method):
            found = {"model": name, "method": method, **_judged(make(model), images, labels)}
        if found is not None:
            yield found


def main(arguments):
    """Prints a row after the other, and writes them as JSON if asked to."""
    if len(arguments) < 2:
        raise SystemExit("give one or more networks, .keras files or names")
    *pixels, labels = _read()
    rows = []
    if FLAGS.json and os.path.exists(FLAGS.json):
        rows = json.loads(Path(FLAGS.json).read_text(encoding="utf-8"))["rows"]
    done = {(row["model"], row["method"]): row for row in rows}
    for source in arguments[1:]:
        for row in _rows(source, pixels, labels, done):
            print(f"{row['model']:20} {row['method']:44} {row['accuracy']:.2%}", flush=True)
            done[row["model"], row["method"]] = row
            if FLAGS.json:
                content = {"command": " ".join(sys.argv), "rows": list(done.values())}
                write_atomically(FLAGS.json, json.dumps(content, indent=2).encode() + b"\n")


if __name__ == "__main__":
    app.run(main)
