"""Time and memory of a training step: float, plain QAT, Merged, and RepQ in each mode.

    python benchmarks/train_step.py --models=ac_resnet18:0.5 --batch_size=32
    python benchmarks/train_step.py --models=ac_resnet8,repvgg_resnet8 --batch_size=128
    KERAS_BACKEND=jax python benchmarks/train_step.py --image_size=224 --batch_size=256

A round runs one step of each configuration, so that the ratios, medians over rounds, are of
steps that ran side by side. Steps are called one by one: what `fit` does around them, and the
threads of `tf.data`, are not in the figures. Other frameworks, PyTorch's compiled LSQ of the
plain network (`benchmarks/torch_lsq.py`) and ACNet in floating point on JAX, run in processes
of their own that wait while others run. Peak memory is of a process for each configuration: the
accelerator's where there is one, else resident memory (Linux). Run it alone on the machine.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags, logging

import repq_tf
from repq_tf.branches import MODES
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras

FLAGS = flags.FLAGS
flags.DEFINE_list(
    "models",
    ["ac_resnet18"],
    "Re-parameterized models, NAME or NAME:WIDTH; each in a table with its plain twin.",
)
flags.DEFINE_list("modes", list(MODES), "Values of bn_statistics.")
flags.DEFINE_integer("image_size", 32, "Height and width of the images.")
flags.DEFINE_integer("batch_size", 32, "Images in a step.")
flags.DEFINE_integer("bits", 8, "Of weights and activations, 2 to 8.")
flags.DEFINE_integer("rounds", 12, "Timed steps of each configuration.")
flags.DEFINE_enum(
    "mixed_precision", "none", ["none", "bfloat16", "float16"], "Half-precision features."
)
flags.DEFINE_bool("jit_compile", None, "Compile with XLA; default: Keras decides.")
flags.DEFINE_bool("memory", True, "Measure peak memory too.")
flags.DEFINE_bool("others", True, "Measure PyTorch and JAX too, where they are installed.")
flags.DEFINE_string("json", None, "Write the tables to this file.")
flags.DEFINE_string("serve", None, "Of one configuration, run a step for each line read.")

FLOAT, QAT, MERGED = "plain float", "plain QAT", "Merged"
JAX, TORCH_FLOAT, TORCH_QAT = "float on JAX", "torch.compile float", "torch.compile LSQ"
WARM_UP = 3
MEMORY = "memory"  # asks a serving process for its peak


def configurations(model: str) -> dict[str, str | None]:
    """The rows of a model's table that run on this backend: `{name: bn_statistics or None}`."""
    rows = {FLOAT: None, QAT: "restored", f"{model} float": None, f"{model} Merged": "restored"}
    return rows | {f"{model} {mode}": mode for mode in FLAGS.modes}


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a step."""
    rng = np.random.default_rng(0)
    size = (FLAGS.batch_size, FLAGS.image_size, FLAGS.image_size, 3)
    images = rng.normal(size=size).astype("float32")
    return images, rng.integers(0, 10, FLAGS.batch_size)


def make_step(model: str, width: float, row: str) -> Callable[[], float]:
    """Builds and compiles one configuration; returns a function that runs a step."""
    images, labels = data()
    plain = row in (FLOAT, QAT)
    name = repq_tf.models.plain_twin(model) if plain else model
    network = repq_tf.models.build(name, 10, images.shape[1:], width=width)
    merged = row.endswith(MERGED)
    if merged:
        network = repq_tf.merge(network)
    mode = configurations(model)[row]
    if mode is not None:
        network = repq_tf.quantize(
            network,
            bits=FLAGS.bits,
            bn_statistics=mode,
            restore_batch_norm=True if merged else None,
            calibration_data=images[:32],
            verbose=False,
        )
    network.compile(
        keras.optimizers.SGD(1e-4, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile="auto" if FLAGS.jit_compile is None else FLAGS.jit_compile,
    )
    return lambda: float(network.train_on_batch(images, labels))


def peak_memory() -> float:
    """Peak memory of this process in MB: the accelerator's, else resident."""
    if keras.backend.backend() == "jax":
        import jax

        stats = jax.local_devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"] / 1e6
    # Not getrusage's maximum, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def serve(step: Callable[[], float]) -> None:
    """Runs a step for each line of the standard input, or tells the peak memory."""
    for line in sys.stdin:
        print(peak_memory() if line.strip() == MEMORY else step(), flush=True)


class Process:
    """A configuration in a process of its own; called, it runs a step."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )
        self._name = " ".join(command)

    def __call__(self, line: str = "step") -> float:
        """Sends a line; returns the number that is answered."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"This process ended: {self._name}")
        return float(answer)

    def end(self) -> None:
        """Lets the process end."""
        self._process.stdin.close()
        self._process.wait()


def serving(model: str, width: float, row: str) -> Process:
    """A process for one configuration."""
    if row in (TORCH_FLOAT, TORCH_QAT):
        script = str(Path(__file__).with_name("torch_lsq.py"))
        settings = {
            "model": repq_tf.models.plain_twin(model),
            "width": width,
            "batch_size": FLAGS.batch_size,
            "image_size": FLAGS.image_size,
            "bits": FLAGS.bits if row == TORCH_QAT else 0,
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return Process([sys.executable, script, "--serve", *options])
    command = [sys.executable, *sys.argv, f"--models={model}:{width}"]
    if row.endswith(JAX):
        row = row.replace(JAX, "float")
        return Process([*command, f"--serve={row}"], KERAS_BACKEND="jax")
    return Process([*command, f"--serve={row}"])


def other_frameworks(model: str) -> list[str]:
    """The rows of other frameworks; says which one is missing."""
    if not FLAGS.others or keras.backend.backend() != "tensorflow":
        return []
    rows = {"torch": [TORCH_FLOAT, TORCH_QAT], "jax": [f"{model} {JAX}"]}
    found = []
    for package, names in rows.items():
        if importlib.util.find_spec(package):
            found += names
        else:
            print(f"no rows {', '.join(names)}: {package} is missing (pip install {package})")
    return found


def measure(model: str, width: float) -> dict[str, dict[str, float | None]]:
    """The table of a model: milliseconds, ratios and peak memory of each row."""
    others = other_frameworks(model)
    steps = {row: make_step(model, width, row) for row in configurations(model)}
    steps |= {row: serving(model, width, row) for row in others}
    times: dict[str, list[float]] = {row: [] for row in steps}
    for turn in range(WARM_UP + FLAGS.rounds):
        for row, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= WARM_UP:
                times[row].append(time.perf_counter() - start)
    for row in others:
        steps[row].end()
    table = {}
    for row, seconds in times.items():
        table[row] = {"milliseconds": 1e3 * float(np.median(seconds))}
        for base in (FLOAT, QAT):
            ratios = np.divide(seconds, times[base])
            table[row][f"to {base}"] = float(np.median(ratios))
        table[row]["peak megabytes"] = measure_memory(model, width, row)
    return table


def measure_memory(model: str, width: float, row: str) -> float | None:
    """Peak memory of one configuration in a process of its own, in MB."""
    if not FLAGS.memory:
        return None
    process = serving(model, width, row)
    for _ in range(WARM_UP):
        process()
    peak = process(MEMORY)
    process.end()
    return peak


def machine() -> dict[str, str | int]:
    """What the figures are of."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": cores,
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
    }


def show(title: str, table: dict[str, dict[str, float | None]]) -> None:
    """Prints a table."""
    width = max(len(title), *map(len, table))
    print(f"{title:{width}}{'ms':>9}{'x float':>9}{'x QAT':>7}{'peak MB':>9}")
    for row, values in table.items():
        milliseconds, to_float, to_qat, memory = values.values()
        peak = "" if memory is None else f"{memory:9.0f}"
        print(f"{row:{width}}{milliseconds:9.1f}{to_float:9.2f}{to_qat:7.2f}{peak}", flush=True)


def main(_: list[str]) -> None:
    """Prints the tables and writes them as JSON if asked to."""
    logging.set_verbosity(logging.ERROR)  # TensorFlow tells of functions made in a loop
    if FLAGS.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{FLAGS.mixed_precision}")
    models = []
    for text in FLAGS.models:
        model, _, width = text.partition(":")
        models.append((model, float(width or 1)))
    if FLAGS.serve:
        serve(make_step(*models[0], FLAGS.serve))
        return
    tables = {}
    for model, width in models:
        title = f"{model}, width {width:g}"
        tables[title] = measure(model, width)
        show(title, tables[title])
        keras.backend.clear_session()
    if FLAGS.json:
        keys = ("image_size", "batch_size", "bits", "rounds", "mixed_precision")
        settings = {key: FLAGS[key].value for key in keys} | machine()
        content = json.dumps({"settings": settings, "tables": tables}, indent=2)
        write_atomically(FLAGS.json, content.encode())


if __name__ == "__main__":
    app.run(main)
