"""Quantized training with LSQ's published step gradient and with the bounded one.

    python benchmarks/step_gradient.py --json=step_gradient.json

Six ACBlocks are trained on scikit-learn's digits and quantized from there. The column "scale"
is what "bounded" multiplies the published one by at the start, the median of all channels.
"""

import json
import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras, ops
from repq_tf.layers import ACBlock, ReparamConv
from repq_tf.quantizers.lsq import STEP_GRADIENTS

FLAGS = flags.FLAGS
flags.DEFINE_list("bits", ["8", "4"], "Bit widths.")
flags.DEFINE_list("rates", ["1", "4"], "Rates of quantized training, in the program's.")
flags.DEFINE_integer("seeds", 2, "Number of seeds.")
flags.DEFINE_string("json", None, "Write the table to this file.")

# Learning rate and epochs in floating point and quantized: the training program's on digits.
FLOAT, QUANTIZED, BATCH_SIZE = (0.05, 10), (0.005, 4), 64
COLUMNS = "seed bits rate step_gradient scale accuracy loss training_loss".split()


def network(seed):
    """Six blocks of a quarter of ResNet-18's widths."""
    keras.utils.set_random_seed(seed)
    blocks = [(16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)]
    layers = [ACBlock(n, strides=strides, activation="relu") for n, strides in blocks]
    ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, *ends])


def fit(model, data, rate, epochs, seed):
    """Trains a model; returns its loss on training images, and both measures on test ones."""
    x, x_test, y, y_test = data
    keras.utils.set_random_seed(seed)
    steps = epochs * math.ceil(len(x) / BATCH_SIZE)
    cosine = keras.optimizers.schedules.CosineDecay(rate, steps)
    sgd = keras.optimizers.SGD(cosine, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(sgd, loss, metrics=["accuracy"], jit_compile=False)
    training = model.fit(x, y, BATCH_SIZE, epochs, verbose=0).history["loss"][-1]
    found = model.evaluate(x_test, y_test, len(x_test), verbose=0, return_dict=True)
    return {**found, "training_loss": training}


def scale(model):
    """The median of what "bounded" multiplies the published gradient scale by."""
    found = []
    for block in (layer for layer in model.layers if isinstance(layer, ReparamConv)):
        lsq = block.weight_quantizer
        low, high, step = lsq.low, lsq.high, ops.convert_to_numpy(lsq.step)
        x = ops.convert_to_numpy(block.inner.merge().kernel).reshape(-1, len(step))
        v = x / step
        error = np.round(np.clip(v, low, high)) - np.where((v > low) & (v < high), v, 0)
        limit = step / (np.sqrt(np.mean(error**2, 0)) * np.linalg.norm(x, axis=0))
        found.append(np.minimum(1, limit * math.sqrt(len(x) * high)))
    return float(np.median(np.concatenate(found)))


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    (pixels, labels), rows = load_digits(return_X_y=True), []
    images = ((pixels.reshape(-1, 8, 8, 1) - 5) / 6).astype("float32")
    data = train_test_split(images, labels, stratify=labels, random_state=0)
    print(f"| {' | '.join(COLUMNS)} |\n" + "| --- " * len(COLUMNS) + "|")
    for seed in range(FLAGS.seeds):
        model = network(seed)
        rows.append({"seed": seed, "bits": 32, **fit(model, data, *FLOAT, seed)})
        for bits, gradient in ((int(b), g) for b in FLAGS.bits for g in STEP_GRADIENTS):
            options = {"calibration_data": data[0], "verbose": False}
            qat = repq_tf.quantize(model, bits, step_gradient=gradient, **options)
            start, median = qat.get_weights(), scale(qat)
            for rate in map(float, FLAGS.rates):
                qat.set_weights(start)
                found = fit(qat, data, rate * QUANTIZED[0], QUANTIZED[1], seed)
                row = dict(zip(COLUMNS, (seed, bits, rate, gradient, median), strict=False))
                rows.append({**row, **found})
    for row in rows:
        cells = (row.get(name, "") for name in COLUMNS)
        print(*(f"| {v:.4g}" if isinstance(v, float) else f"| {v}" for v in cells), "|")
    if FLAGS.json:
        write_atomically(FLAGS.json, json.dumps({"rows": rows}, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
