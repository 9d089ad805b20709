"""What the zeros before a convolution with stride cost in a `.tflite` file.

    python benchmarks/tflite_padding.py

Networks pad half a kernel on both sides. On even sizes with stride 2 this is not TFLite's SAME,
which pads one side less, so the file has a PAD before a VALID convolution. For layers of
the zoo this prints the time of

- PAD and a VALID convolution, as exported;
- the SAME convolution alone, which computes something else, for comparison;
- the kernel inside one that is a row and a column larger, whose SAME reads the same pixels;
- the PAD alone.

The first two take equally long, since XNNPACK folds a PAD of zeros into the convolution that
reads it; the larger kernel would cost about as much as it has more weights.
"""

import json
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags, logging

from repq_tf.files import write_atomically
from repq_tf.quiet import quiet
from repq_tf.train.interpreter import measure_latency

with quiet():
    import tensorflow as tf

FLAGS = flags.FLAGS
flags.DEFINE_float("seconds", 3.0, "Time to spend on runs of each layer.")
flags.DEFINE_string("json", None, "Write the table to this file.")

# Name: kernel size, image size, input and output channels, whether depthwise.
LAYERS = {
    "stem of RepVGG-A0": (3, 224, 3, 48, False),
    "stem of ResNet": (7, 224, 3, 64, False),
    "stage 2 of ResNet-18": (3, 56, 64, 128, False),
    "stage 3 of ResNet-18": (3, 28, 128, 256, False),
    "stage 1 of RepVGG-A0": (3, 112, 48, 48, False),
    "stage 1 of MobileOne-S0": (3, 112, 48, 48, True),
}
FORMS = ("PAD and VALID", "SAME", "larger kernel", "PAD alone")


def fake_quantize(x, peak):
    """8 bits between -peak and peak."""
    return tf.quantization.fake_quant_with_min_max_vars(x, -peak, peak, 8, narrow_range=True)


def functions(size, channels, filters, depthwise):
    """The forms of a layer, as functions of its input."""
    rng = np.random.default_rng(0)
    shape = (size, size, channels, 1 if depthwise else filters)
    kernel = rng.normal(0, 0.05, shape).astype("float32")
    larger = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    zeros = ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))

    def convolve(x, weights, padding):
        weights = fake_quantize(weights, 0.2)
        if depthwise:
            y = tf.nn.depthwise_conv2d(x, weights, (1, 2, 2, 1), padding)
        else:
            y = tf.nn.conv2d(x, weights, 2, padding)
        return fake_quantize(tf.nn.bias_add(y, tf.zeros(filters)), 4.0)

    def pad(x):
        return tf.pad(fake_quantize(x, 4.0), zeros)

    return (
        lambda x: convolve(pad(x), kernel, "VALID"),
        lambda x: convolve(fake_quantize(x, 4.0), kernel, "SAME"),
        lambda x: convolve(fake_quantize(x, 4.0), larger, "SAME"),
        pad,
    )


def convert(function, shape, path):
    """Writes a function as an integer file."""
    module = tf.Module()
    signature = [tf.TensorSpec([1, *shape], tf.float32)]
    module.run = tf.function(function, input_signature=signature, autograph=False)
    concrete = module.run.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    write_atomically(path, converter.convert())


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    logging.set_verbosity(logging.ERROR)  # the converter tells each step
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{index}.tflite") for index in range(len(FORMS))]
        for name, (size, length, channels, filters, depthwise) in LAYERS.items():
            shape = (length, length, channels)
            forms = functions(size, channels, filters, depthwise)
            for form, path in zip(forms, paths, strict=True):
                convert(form, shape, path)
            image = np.random.default_rng(0).normal(size=shape)
            times = measure_latency(paths, image, budget=FLAGS.seconds, most=100_000)
            rows[name] = dict(zip(FORMS, times, strict=True))
    print(f"| int8, ms | {' | '.join(FORMS)} |\n|{' - |' * (len(FORMS) + 1)}")
    for name, times in rows.items():
        print(f"| {name} | {' | '.join(f'{ms:.3f}' for ms in times.values())} |")
    if FLAGS.json:
        write_atomically(FLAGS.json, json.dumps(rows, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
