"""How cost grows: a training step with its settings, and our functions with layers.

    python benchmarks/scaling.py --what=step --json=step.json
    python benchmarks/scaling.py --what=layers --json=layers.json

`step`: seconds and peak memory of a quantized training step (RepQ `restored`) of a residual
chain of ACNet blocks, where batch, width, depth or image size alone changes; each point in a
process of its own, memory being what it holds beyond what it held without the network.

`layers`: CPU seconds of `quantize`, `merge`, `export_tflite` and `check_parity` of narrow
chains of 20 to 200 blocks.

Exponents are slopes of straight lines through logarithms: 1 is proportional. Of a step,
arithmetic has 1 for batch and depth, and 2 for width and image size.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.layers import ACBlock

FLAGS = flags.FLAGS
flags.DEFINE_enum("what", "layers", ["step", "layers"], "What is measured.")
flags.DEFINE_list("layers", ["20", "60", "200"], "Blocks of the chains of `layers`.")
flags.DEFINE_integer("steps", 6, "Timed training steps of a point.")
flags.DEFINE_string("json", None, "Write the table to this file.")
flags.DEFINE_string("point", None, "Measure one point, JSON, and print it.")

BASE = {"batch": 32, "width": 32, "depth": 8, "image": 32}
FACTORS = (0.5, 1, 2)


def chain(depth: int, width: int, image: int) -> keras.Model:
    """A residual chain: each second of `depth` blocks is followed by a sum."""
    # Small enough that features of 200 blocks stay finite.
    options = {"kernel_initializer": keras.initializers.VarianceScaling(0.1)}
    images = keras.Input((image, image, 3))
    x = ACBlock(width, activation="relu", **options)(images)
    for index in range(2, depth + 1, 2):
        y = ACBlock(width, activation="relu", name=f"first{index}", **options)(x)
        if index < depth:
            y = ACBlock(width, name=f"second{index}", **options)(y)
            y = keras.layers.Add(name=f"sum{index}")([x, y])
        x = keras.layers.ReLU(name=f"relu{index}")(y)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(10)(x))


def images_of(count: int, size: int) -> np.ndarray:
    """Images of noise."""
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")


def exponent(sizes: list[float], costs: list[float]) -> float:
    """The slope of a straight line through logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def resident(field: str) -> float:
    """Resident memory of this process in MB, now ("VmRSS") or at most ("VmHWM")."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split(f"{field}:")[1].split()[0]) / 1e3


def step_point(batch: int, width: int, depth: int, image: int) -> dict[str, float]:
    """The median time of a training step, and its memory."""
    images = images_of(batch, image)
    labels = np.zeros(batch, int)
    before = resident("VmRSS")
    model = repq_tf.quantize(
        chain(depth, width, image), calibration_data=images[:2], verbose=False
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), loss)
    seconds = []
    for _ in range(2 + FLAGS.steps):
        start = time.perf_counter()
        model.train_on_batch(images, labels)
        seconds.append(time.perf_counter() - start)
    found = {"milliseconds": 1e3 * float(np.median(seconds[2:]))}
    return found | {"megabytes": resident("VmHWM") - before}


def in_process(point: dict[str, int]) -> dict[str, float]:
    """A point of `step`, measured in a process of its own."""
    command = [sys.executable, *sys.argv, f"--point={json.dumps(point)}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def step_rows() -> list[dict[str, Any]]:
    """A row for each setting: its values, costs and exponents."""
    rows, base = [], in_process(BASE)
    for setting, middle in BASE.items():
        values = [int(factor * middle) for factor in FACTORS]
        points = [
            base if value == middle else in_process({**BASE, setting: value})
            for value in values
        ]
        row: dict[str, Any] = {"setting": setting, "values": values}
        for cost in base:
            costs = [point[cost] for point in points]
            row |= {cost: costs, f"exponent of {cost}": exponent(values, costs)}
        rows.append(row)
    return rows


def layer_rows() -> list[dict[str, Any]]:
    """A row for each function: CPU seconds by the number of blocks, and the exponent."""
    depths = [int(depth) for depth in FLAGS.layers]
    timed(4)  # what is done but once
    found = [timed(depth) for depth in depths]
    return [
        {
            "setting": name,
            "values": depths,
            "CPU seconds": (costs := [seconds[name] for seconds in found]),
            "exponent of CPU seconds": exponent(depths, costs),
        }
        for name in found[0]
    ]


def timed(depth: int) -> dict[str, float]:
    """CPU seconds of each function for a chain of so many blocks."""
    images, seconds = images_of(4, 16), {}

    def run(name: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        seconds[name] = time.process_time() - start
        return result

    model = chain(depth, 8, 16)
    quantized = run(
        "quantize", lambda: repq_tf.quantize(model, calibration_data=images, verbose=False)
    )
    run("merge", lambda: repq_tf.merge(quantized))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "chain.tflite")
        run("export_tflite", lambda: repq_tf.export_tflite(quantized, path))
        run("check_parity", lambda: repq_tf.check_parity(quantized, path, images))
    keras.backend.clear_session()
    return seconds


def main(_: list[str]) -> None:
    """Prints the table and writes it as JSON if asked to."""
    if FLAGS.point:
        print(json.dumps(step_point(**json.loads(FLAGS.point))))
        return
    rows = step_rows() if FLAGS.what == "step" else layer_rows()
    for row in rows:
        for cost in (key for key in row if f"exponent of {key}" in row):
            points = zip(row["values"], row[cost], strict=True)
            costs = "  ".join(f"{value}: {number:.4g}" for value, number in points)
            slope = row[f"exponent of {cost}"]
            print(f"{row['setting']:14}{cost:13}{costs}  exponent {slope:.2f}")
    if FLAGS.json:
        settings = {"cores": len(os.sched_getaffinity(0)), "backend": keras.backend.backend()}
        content = json.dumps({"settings": settings, "rows": rows}, indent=2)
        write_atomically(FLAGS.json, content.encode())


if __name__ == "__main__":
    app.run(main)
