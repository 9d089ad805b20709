"""Transposed convolutions: our CONV_2D and DEPTH_TO_SPACE against the runtime's TRANSPOSE_CONV.

    python benchmarks/transposed.py

Each network is one Conv2DTranspose. Ours is quantized and exported; the others are what
TensorFlow's own converter makes of the float network: of any batch, whose operator reads a
computed shape, so that XNNPACK does not run it, and of one image. They run in turn, in one
thread.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import repq_tf
from repq_tf.tflite.interpreter import Interpreter

# Kernel, stride, channels in, channels out, side.
CASES = (
    (2, 2, 64, 32, 56),
    (2, 2, 256, 128, 28),
    (3, 2, 64, 32, 56),
    (4, 2, 64, 32, 56),
    (4, 4, 32, 8, 64),
    (8, 4, 32, 8, 64),
)
RUNS = 60


def converted(model, images, path):
    """Writes the converter's int8 file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    path.write_bytes(converter.convert())


def measure(kernel, stride, channels, filters, side):
    """Milliseconds of the files, ours first, and the operators of ours."""
    layer = keras.layers.Conv2DTranspose(filters, kernel, stride, padding="same")
    ends = [keras.Input((side, side, channels), batch_size=size) for size in (None, 1)]
    model, single = (keras.Model(end, layer(end)) for end in ends)
    images = np.random.default_rng(0).normal(size=(8, side, side, channels)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.tflite" for name in ("ours", "any", "one")]
        quantized = repq_tf.quantize(model, calibration_data=images, verbose=False)
        operators = repq_tf.export_tflite(quantized, paths[0])
        converted(model, images, paths[1])
        converted(single, images, paths[2])
        interpreters = [Interpreter(path) for path in paths]
        batch = np.random.default_rng(1).integers(-128, 128, (1, *images.shape[1:]), np.int8)
        for interpreter in interpreters:
            interpreter.run(batch)
        seconds = [[i.seconds() for i in interpreters] for _ in range(RUNS)]
    return 1e3 * np.median(seconds, axis=0), operators


def main():
    """Prints a row for each network."""
    print(
        "| kernel, stride, channels, side | any batch | one image | ours | ratio | operators |"
    )
    print("|---|---|---|---|---|---|")
    for case in CASES:
        (ours, any_batch, one), operators = measure(*case)
        kernel, stride, channels, filters, side = case
        what = f"{kernel}, {stride}, {channels} to {filters}, {side}"
        times = " | ".join(f"{value:.3f}" for value in (any_batch, one, ours, ours / one))
        print(f"| {what} | {times} | {', '.join(operators)} |", flush=True)


if __name__ == "__main__":
    main()
