"""Time and memory of a training step: float, plain QAT, and RepQ in each mode.

    python benchmarks/train_step.py --models=ac_resnet18,orepa_resnet18 --width=0.5
    KERAS_BACKEND=jax python benchmarks/train_step.py --image_size=224 --batch_size=256

Steps of all configurations alternate in one process, so that the ratios (to plain float and to
plain QAT of the plain twin) are measured side by side. Peak memory is measured in a process of
its own for each configuration: of the accelerator where there is one, else resident memory
(Linux).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.branches import MODES
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "models", ["ac_resnet18"], "Re-parameterized models with one plain twin, the base."
)
flags.DEFINE_list("modes", list(MODES), "Values of bn_statistics.")
flags.DEFINE_integer("image_size", 32, "Height and width of the images.")
flags.DEFINE_integer("batch_size", 32, "Images in a step.")
flags.DEFINE_float("width", 1.0, "Multiplies all channel numbers.")
flags.DEFINE_integer("bits", 8, "Of weights and activations, 2 to 8.")
flags.DEFINE_integer("steps", 10, "Timed steps of each configuration.")
flags.DEFINE_enum(
    "mixed_precision", "none", ["none", "bfloat16", "float16"], "Half-precision features."
)
flags.DEFINE_bool("jit_compile", None, "Compile with XLA; default: Keras decides.")
flags.DEFINE_bool("memory", True, "Measure peak memory too.")
flags.DEFINE_string("json", None, "Write the table to this file.")
flags.DEFINE_string("only", None, "Run one configuration and print its peak memory.")

FLOAT, QAT = "plain float", "plain QAT"


def configurations():
    """`{name: (model name, bn_statistics or None for float)}`."""
    twins = {repq_tf.models.plain_twin(model) for model in FLAGS.models}
    if len(twins) > 1:
        raise app.UsageError(f"--models must have one plain twin. They have: {sorted(twins)}")
    plain = twins.pop()
    table = {FLOAT: (plain, None), QAT: (plain, "restored")}
    for model in FLAGS.models:
        table[f"{model} float"] = (model, None)
        table.update({f"{model} {mode}": (model, mode) for mode in FLAGS.modes})
    return table


def make_step(name, bn_statistics, images, labels):
    """Builds and compiles one configuration; returns a function that runs a step."""
    shape = images.shape[1:]
    model = repq_tf.models.build(name, 10, shape, width=FLAGS.width)
    if bn_statistics is not None:
        calibration = images[: min(len(images), 32)]
        model = repq_tf.quantize(
            model,
            bits=FLAGS.bits,
            bn_statistics=bn_statistics,
            calibration_data=calibration,
            verbose=False,
        )
    model.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile="auto" if FLAGS.jit_compile is None else FLAGS.jit_compile,
    )
    return lambda: float(model.train_on_batch(images, labels))


def peak_memory():
    """Peak memory of this process in MB: the accelerator's, else resident."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"] / 1e6
    # Not getrusage's maximum, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def measure_memory(name):
    """Peak memory of one configuration in a process of its own, in MB."""
    command = [sys.executable, *sys.argv, f"--only={name}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def main(_):
    """Prints the table and writes it as JSON if asked to."""
    if FLAGS.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{FLAGS.mixed_precision}")
    rng = np.random.default_rng(0)
    size = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    images = rng.normal(size=size).astype("float32")
    labels = rng.integers(0, 10, FLAGS.batch_size)
    table = configurations()
    if FLAGS.only:
        step = make_step(*table[FLAGS.only], images, labels)
        for _ in range(3):
            step()
        print(peak_memory())
        return
    steps = {name: make_step(*spec, images, labels) for name, spec in table.items()}
    for step in steps.values():
        step()
        step()
    times = {name: [] for name in steps}
    for _ in range(FLAGS.steps):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    memory = {name: measure_memory(name) if FLAGS.memory else None for name in steps}
    width = max(map(len, table))
    print(f"{'':{width}}{'ms':>10}{'x float':>9}{'x QAT':>7}{'peak MB':>10}")
    for name, seconds in medians.items():
        ratios = f"{seconds / medians[FLOAT]:9.2f}{seconds / medians[QAT]:7.2f}"
        peak = f"{memory[name]:10.0f}" if FLAGS.memory else ""
        print(f"{name:{width}}{1e3 * seconds:10.1f}{ratios}{peak}")
    if FLAGS.json:
        settings = {
            key: FLAGS[key].value
            for key in "models image_size batch_size width bits mixed_precision".split()
        }
        result = {
            "settings": {**settings, "backend": keras.backend.backend()},
            "milliseconds": {name: 1e3 * seconds for name, seconds in medians.items()},
            "ratio_to_plain_float": {n: t / medians[FLOAT] for n, t in medians.items()},
            "ratio_to_plain_qat": {n: t / medians[QAT] for n, t in medians.items()},
            "peak_megabytes": memory,
        }
        write_atomically(FLAGS.json, json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
