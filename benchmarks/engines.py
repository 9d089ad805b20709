"""Other engines on the same integers: latency against LiteRT, and what they compute.

    pip install onnxruntime openvino
    python benchmarks/engines.py --models=ac_resnet18,mobileone_s0 --image_size=224

Each model is quantized and exported untrained, as `.tflite` and `.onnx`. LiteRT, ONNX Runtime
and OpenVINO then run in turn in one process (batch 1, one thread each), in a new order every
round; times are medians of the CPU time that the process took. The outputs of each engine are
compared with the Keras model's on images of noise, in steps. OpenVINO is told to compute what
is not in integers in float32.
"""

import collections
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnxruntime
import openvino
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["ac_resnet18", "mobileone_s0"], "Names of repq_tf.models.")
flags.DEFINE_integer("image_size", 224, "Height and width of the images.")
flags.DEFINE_integer("images", 32, "That outputs are compared on.")
flags.DEFINE_float("seconds", 20.0, "Time to spend on runs of each model.")
flags.DEFINE_string("json", None, "Write the table to this file.")

Run = Callable[[np.ndarray], np.ndarray]


def litert(path: str) -> Run:
    """A `.tflite` file, which takes and gives float32."""
    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(end["index"])

    return run


def onnx_runtime(path: str) -> Run:
    """An `.onnx` file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Exact kernels on CPUs without VNNI, too.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda image: session.run(None, {entry.name: image})[0]


def open_vino(path: str) -> Run:
    """An `.onnx` file in OpenVINO."""
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    network = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda image: network(image)[0]


def quantized(name: str) -> tuple[keras.Model, np.ndarray]:
    """An untrained network whose features have the scale of trained ones, and images."""
    keras.utils.set_random_seed(0)
    size = FLAGS.image_size
    model = repq_tf.models.build(name, 1000 if size > 64 else 10, (size, size, 3))
    shape = (FLAGS.images, size, size, 3)
    images = np.random.default_rng(0).normal(size=shape).astype("float32")
    repq_tf.reestimate_batch_norm(model, images[:4])
    return repq_tf.quantize(model, calibration_data=images[:4], verbose=False), images


def medians(engines: dict[str, Run], image: np.ndarray) -> dict[str, float]:
    """Milliseconds of CPU of each engine for an image."""
    for run in engines.values():
        for _ in range(5):
            run(image)
    times: dict[str, list[float]] = {name: [] for name in engines}
    order, end = np.random.default_rng(0), time.perf_counter() + FLAGS.seconds
    while time.perf_counter() < end:
        for name in order.permutation(list(engines)):
            start = time.process_time()
            engines[name](image)
            times[name].append(time.process_time() - start)
    return {name: 1e3 * float(np.median(found)) for name, found in times.items()}


def row_of(name: str, folder: str) -> dict[str, Any]:
    """A row of the table."""
    model, images = quantized(name)
    paths = [os.path.join(folder, f"{name}.{kind}") for kind in ("tflite", "onnx")]
    repq_tf.export_tflite(model, paths[0], input_type="float32", output_type="float32")
    repq_tf.export_onnx(model, paths[1])
    engines = {
        "LiteRT": litert(paths[0]),
        "ONNX Runtime": onnx_runtime(paths[1]),
        "OpenVINO": open_vino(paths[1]),
    }
    step = [la.step for la in model.layers if isinstance(la, repq_tf.layers.Quantize)][-1]
    want = model.predict(images, verbose=0, batch_size=8)
    compared = {}
    for engine, run in engines.items():
        got = np.concatenate([run(image[None]) for image in images])
        apart = np.rint(np.abs(got - want) / float(step)).astype(int)
        compared[engine] = {
            "top-1 agreement": float((got.argmax(-1) == want.argmax(-1)).mean()),
            "outputs by steps apart": dict(
                sorted(collections.Counter(apart.ravel().tolist()).items())
            ),
        }
    return {"model": name, "milliseconds": medians(engines, images[:1]), "compared": compared}


def main(_: list[str]) -> None:
    """Prints the table and writes it as JSON if asked to."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in FLAGS.models:
            rows.append(row_of(name, folder))
            times, compared = rows[-1]["milliseconds"], rows[-1]["compared"]
            for engine, found in compared.items():
                ratio = times[engine] / times["LiteRT"]
                print(
                    f"{name:14}{engine:14}{times[engine]:8.2f} ms{ratio:6.2f}  {found}",
                    flush=True,
                )
    if FLAGS.json:
        settings = {"image_size": FLAGS.image_size, "images": FLAGS.images}
        versions = {
            "onnxruntime": onnxruntime.__version__,
            "openvino": openvino.__version__,
        }
        content = {"settings": settings, "versions": versions, "rows": rows}
        write_atomically(FLAGS.json, json.dumps(content, indent=2).encode())


if __name__ == "__main__":
    app.run(main)
