"""Losses of the same training on 1, 2 and 4 devices of one machine (MirroredStrategy).

    python benchmarks/devices.py --dtype=float64

trains a small quantized network on the same global batches with virtual CPU devices, and
prints by how much the losses of several devices differ from those of one. In float64 the
difference shows the arithmetic of replicas alone. In float32, rounding moves values that lie
on the border of two levels to the one or the other, which quantized training carries on.

Every number of devices gets a process of its own: TensorFlow numbers the collectives of every
strategy alike, so that a second strategy in a process runs into the first one's.
"""

import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags, logging

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.train.engines.base import Engine
from repq_tf.train.engines.mirrored import Mirrored
from repq_tf.train.settings.flags import BN_STATISTICS
from repq_tf.train.stages.optimizer import make_optimizer
from repq_tf.train.tasks.classification.arrays import ArrayDataset

SIZE = (8, 8)
CLASSES = 5

FLAGS = flags.FLAGS
flags.DEFINE_list("devices", ["1", "2", "4"], "Numbers of devices; the first is compared with.")
flags.DEFINE_list("modes", ["float", *BN_STATISTICS], "float, and where RepQ takes moments.")
flags.DEFINE_integer("steps", 50, "Training steps.")
flags.DEFINE_integer("batch_size", 32, "Images per step, over all devices.")
flags.DEFINE_integer("bits", 4, "Bits of weights and activations.")
flags.DEFINE_enum("dtype", "float32", ["float32", "float64"], "Type of all computations.")
flags.DEFINE_string("json", None, "File for the losses.")
flags.DEFINE_integer("only", None, "Train on this many devices and print the losses as JSON.")


def make_images():
    """Random images of classes that can be told apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 512)
    patterns = rng.integers(0, 128, (CLASSES, *SIZE, 3))
    images = patterns[labels] + rng.integers(0, 128, (len(labels), *SIZE, 3))
    return images.astype("uint8"), labels


def make_model(mode):
    """A network of two blocks and a residual sum, quantized unless the mode is float.

    It is built of the layers that `repq_tf.quantize` makes, because that works in float32.
    """
    keras.utils.set_random_seed(0)
    quantized = mode != "float"
    options = {"weight_bits": FLAGS.bits, "bn_statistics": mode} if quantized else {}

    def quantize(x, signed):
        if not quantized:
            return x
        layer = repq_tf.layers.Quantize(FLAGS.bits, signed)
        y, _ = layer(x)
        layer.activation_quantizer.set_step(4 / 2**FLAGS.bits)
        return y

    inputs = keras.Input((*SIZE, 3), name="image")
    blocks = [
        repq_tf.layers.ACBlock(8, activation="relu", **options),
        repq_tf.layers.RepVGGBlock(8, **options),
    ]
    x = quantize(blocks[0](quantize(inputs, True)), False)
    y = quantize(blocks[1](x), True)
    x = quantize(keras.layers.ReLU()(keras.layers.Add()([x, y])), False)
    for block in blocks:
        if quantized:
            block.weight_quantizer.initialize(block.inner.merge().kernel)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


class _Losses(keras.callbacks.Callback):
    """Collects the loss of every step, which Keras averages over an epoch otherwise."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(float(logs["loss"]))


def train(mode, engine):
    """Returns the loss of every step."""
    images = make_images()
    losses = _Losses()
    with engine.scope():
        model = make_model(mode)
        model.compile(
            make_optimizer(model, 0.1, FLAGS.steps, weight_decay=1e-4),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
        batches = ArrayDataset(*images, FLAGS.batch_size, SIZE)
        epochs = -(-FLAGS.steps // len(batches))
        model.fit(batches, epochs=epochs, shuffle=False, callbacks=[losses], verbose=0)
    return losses.values[: FLAGS.steps]


def train_all(devices):
    """Returns mode -> losses on a number of devices of this process."""
    import tensorflow as tf

    keras.config.set_floatx(FLAGS.dtype)
    keras.config.set_dtype_policy(FLAGS.dtype)
    tf.config.experimental.enable_op_determinism()
    cpu = tf.config.list_physical_devices("CPU")[0]
    each = [tf.config.LogicalDeviceConfiguration()] * devices
    tf.config.set_logical_device_configuration(cpu, each)
    engine = Engine()
    if devices > 1:
        names = [f"CPU:{k}" for k in range(devices)]
        engine = Mirrored(tf.distribute.MirroredStrategy(names))
    return {mode: train(mode, engine) for mode in FLAGS.modes}


def main(_):
    """Prints the table and writes the losses as JSON if asked to."""
    logging.set_verbosity(logging.WARNING)  # tf.distribute tells each reduction
    if FLAGS.only:
        print(json.dumps(train_all(FLAGS.only)))
        return
    counts = [int(count) for count in FLAGS.devices]
    losses = {}
    for count in counts:
        command = [sys.executable, *sys.argv, f"--only={count}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        losses[count] = json.loads(result.stdout.splitlines()[-1])
    first, *others = counts
    print(f"{FLAGS.steps} steps, {FLAGS.dtype}: largest difference of a loss, relative")
    print(f"{'':12}{'first':>8}{'last':>8}" + "".join(f"{n:>4} devices" for n in others))
    differences = {}
    for mode in FLAGS.modes:
        one = np.array(losses[first][mode])
        differences[mode] = {
            count: float(np.abs(np.array(losses[count][mode]) / one - 1).max())
            for count in others
        }
        columns = "".join(f"{value:12.1e}" for value in differences[mode].values())
        print(f"{mode:12}{one[0]:8.4f}{one[-1]:8.4f}{columns}")
    if FLAGS.json:
        record = {"dtype": FLAGS.dtype, "differences": differences, "losses": losses}
        write_atomically(FLAGS.json, json.dumps(record, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
