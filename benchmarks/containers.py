"""Size and latency of a network's file by its types: INT8 and INT4 kernels, INT16 activations.

    python benchmarks/containers.py --model=ac_resnet18 --width=0.5 --weight_bits=4

The network is quantized untrained, since neither depends on the values of weights. Its files
run in turn in one process (LiteRT's default kernels, batch 1, one thread), so that the ratios
are measured side by side; times are medians. "differ" counts the stored values in which a file
differs from the Keras model (`repq_tf.check_parity`). The last line compares the two files'
outputs, which differ because their kernels round differently, layer upon layer.
"""

import json
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.train.interpreter import Network, measure_latency
from repq_tf.train.stages.report import versions

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "ac_resnet18", "Name of the network (repq_tf.models).")
flags.DEFINE_float("width", 0.5, "Multiplier of its channels.")
flags.DEFINE_integer("image_size", 32, "Height and width of the images.")
flags.DEFINE_integer("weight_bits", 4, "Bits of all kernels, 2 to 4.")
flags.DEFINE_float("seconds", 20.0, "Time to spend on runs.")
flags.DEFINE_integer("images", 64, "Images for calibration and parity.")
flags.DEFINE_string("json", None, "Write the table to this file.")

# Of a file: the bits of activations, and the container of kernels.
FILES = {"int8": (8, "int8"), "int4": (8, "int4"), "int16": (16, "int8")}


def network():
    """The float network, and images."""
    keras.utils.set_random_seed(0)
    shape = (FLAGS.image_size, FLAGS.image_size, 3)
    model = repq_tf.models.build(FLAGS.model, 10, shape, width=FLAGS.width)
    images = np.random.default_rng(0).normal(size=(FLAGS.images, *shape)).astype("float32")
    repq_tf.reestimate_batch_norm(model, images)
    return model, images


def quantize(model, images, activation_bits):
    """The quantized network; in first and last layers too, kernels have few bits."""
    return repq_tf.quantize(
        model,
        weight_bits=FLAGS.weight_bits,
        activation_bits=activation_bits,
        rules=[("*", {"weight_bits": FLAGS.weight_bits})],
        calibration_data=images,
        verbose=False,
    )


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    model, images = network()
    quantized = {bits: quantize(model, images, bits) for bits in (8, 16)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: os.path.join(folder, f"{kind}.tflite") for kind in (*FILES, "float32")}
        reports = {}
        for kind, (bits, container) in FILES.items():
            repq_tf.export_tflite(quantized[bits], paths[kind], container=container)
            reports[kind] = repq_tf.check_parity(quantized[bits], paths[kind], images)
        repq_tf.export_tflite_float(model, paths["float32"])
        outputs = [Network(paths[kind])(images) for kind in ("int8", "int4")]
        times = measure_latency(paths.values(), images[0], FLAGS.seconds, most=100_000)
        sizes = [os.path.getsize(path) for path in paths.values()]
    rows = []
    for kind, size, time in zip(paths, sizes, times, strict=True):
        row = {"file": kind, "bytes": size, "milliseconds": time}
        row |= {"bytes_to_int8": size / sizes[0], "milliseconds_to_int8": time / times[0]}
        if kind in reports:
            row["different_values"] = sum(layer.different for layer in reports[kind].layers)
        rows.append(row)
    apart = float(np.mean(outputs[0] != outputs[1]))
    top1 = float(np.mean(outputs[0].argmax(axis=-1) == outputs[1].argmax(axis=-1)))
    print(f"{'file':10}{'MB':>8}{'to int8':>9}{'ms':>9}{'to int8':>9}{'differ':>8}")
    for row in rows:
        print(
            f"{row['file']:10}{row['bytes'] / 1e6:8.3f}{row['bytes_to_int8']:9.3f}"
            f"{row['milliseconds']:9.3f}{row['milliseconds_to_int8']:9.2f}"
            f"{row.get('different_values', ''):>8}"
        )
    print(f"int4 and int8: {apart:.1%} of the final outputs differ, top-1 agreement {top1:.1%}")
    if FLAGS.json:
        names = "model", "width", "image_size", "weight_bits", "seconds", "images"
        settings = {name: FLAGS[name].value for name in names}
        content = {"settings": settings, "versions": versions(), "rows": rows}
        content |= {"different_outputs": apart, "top1_agreement": top1}
        write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
