"""Images per second of the input pipeline, against what a training step needs.

    python benchmarks/input_pipeline.py --model=repvgg_a0 --dataset=cifar10 --data_dir=DIR
    KERAS_BACKEND=jax python benchmarks/input_pipeline.py --dataset=imagenet2012 --data_dir=DIR

Both rates are measured in the same process, one after the other: batches that are only read,
and steps of the float network and of the quantized one on a batch that is there already. A
ratio above one means that the device never waits for images, if the processor has nothing
else to do. The flags are those of `train/main.py`.
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import logging

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.train.settings import command, flags, kinds, resolve
from repq_tf.train.stages.training import choose_jit
from repq_tf.train.tasks.classification.task import Classification

SETTINGS = (
    "model dataset data_dir image_size augment randaugment mixup label_smoothing cache width"
    " batch_size mixed_precision jit_compile seed"
).split()
OWN = (
    flags.Flag("batches", kinds.Integer(1), 20, "Batches and steps that are timed."),
    flags.Flag("json", kinds.Text("a file"), None, "Write the table to this file."),
)
FLAGS = {
    **{name: flags.FLAGS[name] for name in SETTINGS},
    **{flag.name: flag for flag in OWN},
}


def read_rate(task, count):
    """Returns images per second of at most `count` batches, after another one."""
    batches = task.train_batches(0, min(count + 1, task.steps_per_epoch))
    count = len(batches) - 1
    with ThreadPoolExecutor(getattr(batches, "workers", 1)) as threads:
        if isinstance(batches, keras.utils.PyDataset):
            size = len(batches[0][0])
            read = threads.map(batches.__getitem__, range(1, count + 1))
        else:
            read = iter(batches)
            size = len(next(read)[0])
        begin = time.perf_counter()
        for _ in read:
            pass
        return count * size / (time.perf_counter() - begin)


def step_rate(task, model, batch, count, jit_compile):
    """Returns images per second of `count` training steps, after three others."""
    task.compile(model, keras.optimizers.SGD(1e-4, momentum=0.9), jit_compile)
    for k in range(count + 3):
        if k == 3:
            begin = time.perf_counter()
        float(model.train_on_batch(*batch)[0])
    return count * len(batch[0]) / (time.perf_counter() - begin)


def first_batch(task):
    """Returns a training batch as arrays."""
    batches = task.train_batches(0, 1)
    if isinstance(batches, keras.utils.PyDataset):
        return batches[0]
    return next(iter(batches.as_numpy_iterator()))


def main():
    """Prints the table and writes it as JSON if asked to."""
    if command.asks_for_help(sys.argv[1:]):
        print(command.describe(__doc__, FLAGS))
        return
    given, _ = command.read(sys.argv[1:], FLAGS)
    own = {flag.name: given.pop(flag.name, flag.default) for flag in OWN}
    logging.set_verbosity(logging.WARNING)  # TFDS tells each step
    settings = resolve(**given)
    task = Classification(settings)
    if settings.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{settings.mixed_precision}")
    batch = first_batch(task)
    model = task.build(settings.model)
    inputs = np.asarray(batch[0][:32])
    qat = repq_tf.quantize(model, bits=8, calibration_data=inputs, verbose=False)
    rates = {"pipeline": read_rate(task, own["batches"])}
    for name, network in (("float training", model), ("quantized training", qat)):
        rates[name] = step_rate(task, network, batch, own["batches"], choose_jit(settings))
    shape = "x".join(map(str, task.images.image_shape))
    print(f"{settings.model}, {settings.dataset}, {shape}, batch {settings.batch_size}")
    print(f"{'':20}{'images/s':>10}{'pipeline/need':>15}")
    for name, rate in rates.items():
        print(f"{name:20}{rate:10.0f}{rates['pipeline'] / rate:15.2f}")
    if own["json"]:
        chosen = {name: getattr(settings, name) for name in SETTINGS}
        result = {
            "command": " ".join(sys.argv),
            "settings": {**chosen, "backend": keras.backend.backend(), "cores": os.cpu_count()},
            "images_per_second": rates,
            "pipeline_to_need": {n: rates["pipeline"] / rate for n, rate in rates.items()},
        }
        write_atomically(own["json"], json.dumps(result, indent=2).encode())


if __name__ == "__main__":
    main()
