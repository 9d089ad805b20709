"""What making the merged kernel costs, block by block, against the convolution of features.

    python benchmarks/merge_cost.py --channels=64,256 --image_size=14 --batch_size=32

For each block and number of channels: time and peak memory of the merged kernel M and its
gradients to all branch weights alone, beside one convolution of features with M and its
gradients. Both are compiled functions of one process, alternated. Memory is what XLA's compiled
program says of its temporaries, which needs KERAS_BACKEND=jax; it is left out otherwise.
"""

import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags, logging

from repq_tf import layers
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras, ops
from repq_tf.windows import convolve

FLAGS = flags.FLAGS
flags.DEFINE_list("channels", ["64", "256"], "Input and output channels.")
flags.DEFINE_integer("image_size", 14, "Height and width of the features.")
flags.DEFINE_integer("batch_size", 32, "Images in a step.")
flags.DEFINE_integer("steps", 10, "Timed steps of each function.")
flags.DEFINE_string("json", None, "Write the table to this file.")

BLOCKS = {
    "ACBlock": {},
    "RepVGGBlock": {},
    "QARepVGGBlock": {},
    "MobileOneBlock": {"branches": 4},
    "DiverseBranchBlock": {},
    "OREPABlock": {},
    "ECB": {},
    "ExpandNet": {},
    "DiracConv": {},
    "CSLABlock": {},
}


def gradient_function(function, variables):
    """A compiled function of a list of arrays: the gradients of `function`'s sum of squares."""
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(jax.grad(lambda values: ops.sum(ops.square(function(values)))))
        lowered = compiled.lower(variables).compile()
        memory = lowered.memory_analysis().temp_size_in_bytes / 1e6
        return lambda: jax.block_until_ready(lowered(variables)), memory
    import tensorflow as tf

    @tf.function
    def run(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = ops.sum(ops.square(function(values)))
        return tape.gradient(loss, values)

    return lambda: [g.numpy() for g in run(variables)], None


def merge_function(name, channels):
    """A function of a block's trainable weights that returns the merged kernel."""
    block = getattr(layers, name)(channels, **BLOCKS[name])
    block.build((None, None, None, channels))
    # Those that the kernel depends on; biases and betas end in its bias.
    variables = [v for v in block.inner.trainable_variables if not _is_bias(v)]

    def merged(values):
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return block.inner.merge().kernel

    return merged, [ops.convert_to_tensor(v) for v in variables]


def _is_bias(variable):
    return variable.path.endswith(("/bias", "/beta"))


def measure(functions):
    """Median milliseconds of functions that run in turn."""
    times = {name: [] for name in functions}
    for step in range(FLAGS.steps + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if step >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    logging.set_verbosity(logging.ERROR)  # TensorFlow tells of functions made in a loop
    rows = []
    size = FLAGS.image_size
    for channels in map(int, FLAGS.channels):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(FLAGS.batch_size, size, size, channels)).astype("float32")
        kernel = rng.normal(size=(3, 3, channels, channels)).astype("float32")
        tensors = [ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)]
        window = ((1, 1), (1, 1))
        convolution, conv_memory = gradient_function(
            lambda values, window=window: convolve(*values, window=window), tensors
        )
        functions, memories = {"convolution": convolution}, {}
        for name in BLOCKS:
            functions[name], memories[name] = gradient_function(*merge_function(name, channels))
        milliseconds = measure(functions)
        base = milliseconds.pop("convolution")
        for name, value in milliseconds.items():
            row = {"block": name, "channels": channels, "merge_ms": value}
            row |= {"convolution_ms": base, "ratio": value / base}
            rows.append({**row, "merge_mb": memories[name], "convolution_mb": conv_memory})
    print(f"{'block':20}{'channels':>9}{'merge ms':>10}{'conv ms':>10}{'ratio':>8}{'MB':>8}")
    for row in rows:
        memory = "" if row["merge_mb"] is None else f"{row['merge_mb']:8.1f}"
        print(
            f"{row['block']:20}{row['channels']:9}{row['merge_ms']:10.2f}"
            f"{row['convolution_ms']:10.2f}{row['ratio']:8.3f}{memory}"
        )
    if FLAGS.json:
        settings = {"image_size": size, "batch_size": FLAGS.batch_size}
        settings["backend"] = keras.backend.backend()
        content = json.dumps({"settings": settings, "rows": rows}, indent=2)
        write_atomically(FLAGS.json, content.encode())


if __name__ == "__main__":
    app.run(main)
