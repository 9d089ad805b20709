"""The training program on several machines, which are processes of this one."""

import contextlib
import json
import os
import socket
import sys
import tempfile
import time

import numpy as np

from tests.forks import text
from tests.train.commands import TINY_MODELS, WITHOUT_PICTURES, start


def tensorflow_cluster(count):
    """The environments of the workers of a `MultiWorkerMirroredStrategy`, on tf_keras."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    configs = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(count)
    ]
    legacy = {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "1"}
    if count == 1:
        return [legacy]
    return [{**legacy, "TF_CONFIG": json.dumps(config)} for config in configs]


def jax_cluster(count, devices=1):
    """The environments of JAX processes, each with a number of devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}"
    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    if count == 1:
        return [jax]
    processes = {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{free_ports(1)[0]}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
    }
    return [
        {**jax, **processes, "KERAS_DISTRIBUTION_PROCESS_ID": str(index)}
        for index in range(count)
    ]


def free_ports(count):
    """Ports on which nothing listens."""
    with_ports = [socket.socket() for _ in range(count)]
    for each in with_ports:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in with_ports]
    for each in with_ports:
        each.close()
    return ports


def run_workers(environments, folder, *args, until=None, last=None):
    """Runs the program in several processes that train together.

    Args:
        environments: What each process has in its environment.
        folder: The run folder; the weights of every worker after every stage come beside
            it, for `trained_weights`.
        *args: Further arguments.
        until: Kill them all as soon as this file is there.
        last: The training stage after which they end.

    Returns:
        What each printed, stdout and stderr together.
    """
    before = [
        TINY_MODELS,
        WITHOUT_PICTURES,
        f"from tests.train import workers; workers.watch({str(folder)!r}, {last!r})",
    ]
    args = [*args, f"--workdir={folder}"]
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in environments]
        processes = [
            start(*args, output=output, errors=output, before=before, forked=True, **each)
            for each, output in zip(environments, outputs, strict=True)
        ]
        try:
            return _wait(processes, outputs, until)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _wait(processes, outputs, until):
    """Waits until all have ended or a file is there, and returns what they printed."""
    end = time.monotonic() + 300
    while any(process.poll() is None for process in processes):
        if until and os.path.exists(until):
            return []
        assert time.monotonic() < end, _texts(outputs)
        assert not any(process.poll() for process in processes), _texts(outputs)
        time.sleep(0.005)
    assert not any(process.poll() for process in processes), _texts(outputs)
    assert not until, f"{until} was not written"
    return _texts(outputs)


def _texts(files):
    return [text(file)[-3000:] for file in files]


def trained_weights(folder, stage, worker=0):
    """Returns the weights that a worker had after a stage."""
    with np.load(_weights_file(folder, stage, worker)) as file:
        return [file[name] for name in file.files]


def _weights_file(folder, stage, worker):
    return os.path.join(os.path.dirname(folder), f"{stage}_{worker}.npz")


def watch(folder, last):
    """Records a worker's weights after each stage; forbids all but the chief to write.

    Runs in the worker's process, before the program.
    """
    from repq_tf.keras_api import to_numpy
    from repq_tf.train import pipeline
    from repq_tf.train.engines import choose

    train = pipeline.train

    def recorded(model, task, settings, run, stage, *args, engine, **options):
        seconds = train(model, task, settings, run, stage, *args, engine=engine, **options)
        arrays = [to_numpy(variable) for variable in model.weights]
        np.savez(_weights_file(folder, stage, engine.worker), *arrays)
        if stage == last:
            raise SystemExit
        return seconds

    def forbidding(name):
        engine = make_engine(name)
        if not engine.is_chief:
            _forbid_writing(folder)
        return engine

    make_engine = choose.make_engine
    choose.make_engine = forbidding
    pipeline.train = recorded


def _forbid_writing(folder):
    def refuse(event, args):
        writes = event in ("os.rename", "os.remove", "os.mkdir")
        if event == "open":
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(args[0]).startswith(f"{folder}{os.sep}"):
            raise AssertionError(f"A worker other than the chief writes {args[0]}")

    sys.addaudithook(refuse)
