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
from absl import app, flags

from repq_tf.files import write_atomically
from repq_tf.tflite.operators import kernel_layout
from repq_tf.tflite.program import Grid, Program, Tensor, whole
from repq_tf.tflite.writer import write
from repq_tf.train.interpreter import measure_latency

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


GRID = Grid(np.float32(4 / 127))


def features(program, name, size, channels):
    """A tensor of one int8 image."""
    return Tensor(program.name(name), "int8", (1, size, size, channels), GRID)


def forms(size, length, channels, filters, depthwise):
    """The forms of a layer, as programs."""
    rng = np.random.default_rng(0)
    shape = (size, size, 1 if depthwise else channels, filters)
    kernel = rng.integers(-127, 128, shape).astype(np.int8)
    larger = np.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"

    def start():
        program = Program()
        x = program.inputs["image"] = features(program, "image", length, channels)
        return program, x

    def pad(program, x):
        sides = whole(((0, 0), *(((size // 2,) * 2),) * 2, (0, 0)))
        y = features(program, "pad", length + size - 1, channels)
        return program.add("PAD", (x, program.constant("sides", sides)), y)

    def convolve(program, x, weights, padding):
        values, axis = kernel_layout(weights, kind)
        scale = np.full(filters, 0.2 / 127, np.float32)
        constant = program.constant("kernel", values, Grid(scale, 0, axis))
        bias = program.constant("bias", np.zeros(filters, np.int32), Grid(scale * GRID.scale))
        options = {"padding": padding, "strideH": 2, "strideW": 2, "dilationHFactor": 1}
        options |= {"dilationWFactor": 1, "fusedActivationFunction": "NONE"}
        if depthwise:
            options["depthMultiplier"] = filters // channels
        y = features(program, "y", -(-length // 2), filters)
        return program.add(kind, (x, constant, bias), y, **options)

    makers = (
        lambda program, x: convolve(program, pad(program, x), kernel, "VALID"),
        lambda program, x: convolve(program, x, kernel, "SAME"),
        lambda program, x: convolve(program, x, larger, "SAME"),
        pad,
    )
    for make in makers:
        program, x = start()
        program.outputs["y"] = make(program, x)
        yield program


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, f"{index}.tflite") for index in range(len(FORMS))]
        for name, layer in LAYERS.items():
            for program, path in zip(forms(*layer), paths, strict=True):
                write_atomically(path, write(program))
            shape = layer[1], layer[1], layer[2]
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
