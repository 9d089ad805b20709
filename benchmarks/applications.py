"""The networks of `keras.applications`, quantized and exported: each file's size and parity.

    python benchmarks/applications.py --json=benchmarks/results/applications.json

Every network is built as `keras.applications` does, without weights, given statistics, and
goes through `quantize`, one step of `fit`, `export_tflite` and `check_parity`. Random weights
make no accuracy, but rounding and parity are those of any. What the JSON file holds is not run
again. With `--compare`, the int8 file's latency is measured beside that of the float32 file
and of the one that TensorFlow's converter makes post-training.
"""

import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.layers.stock import MAPS
from repq_tf.quantization.quantize import check_quantizable
from repq_tf.train.interpreter import measure_latency
from repq_tf.train.stages.report import versions

NETWORKS = """
    ConvNeXtBase ConvNeXtLarge ConvNeXtSmall ConvNeXtTiny ConvNeXtXLarge DenseNet121 DenseNet169
    DenseNet201 EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3 EfficientNetB4
    EfficientNetB5 EfficientNetB6 EfficientNetB7 EfficientNetV2B0 EfficientNetV2B1
    EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2L EfficientNetV2M EfficientNetV2S
    InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small
    NASNetLarge NASNetMobile ResNet101 ResNet101V2 ResNet152 ResNet152V2 ResNet50 ResNet50V2
    VGG16 VGG19 Xception
""".split()

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", NETWORKS, "Names of networks of keras.applications.")
flags.DEFINE_integer("image_size", 96, "Height and width of the images.")
flags.DEFINE_integer("images", 4, "Images to calibrate with, to train on and to compare.")
flags.DEFINE_bool("compare", False, "Whether to measure other files of the network, too.")
flags.DEFINE_float("seconds", 2.0, "Time to spend on runs of each file.")
flags.DEFINE_string("json", None, "File for the results; what it holds is not run again.")


def build(name):
    """An untrained network with statistics of its features, and images of pixels for it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    size, rng = FLAGS.image_size, np.random.default_rng(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.beta.shape
            layer.beta.assign(rng.normal(0, 0.3, shape))
            if layer.gamma is not None:
                layer.gamma.assign(
                    rng.choice((1, 1, 1, -1), shape) * rng.uniform(0.5, 1.5, shape)
                )
    images = rng.integers(0, 256, (FLAGS.images, size, size, 3)).astype("float32")
    return model, images


def timed(function, *args, **options):
    """What a function returns, and the CPU seconds that it took."""
    start = time.process_time()
    return function(*args, **options), time.process_time() - start


def measure(name):
    """One network's row."""
    model, images = build(name)
    row = {"layers": len(model.layers), "parameters": model.count_params()}
    prepares = any(isinstance(layer, MAPS) for layer in model.layers)
    try:
        check_quantizable(model)
    except ValueError as error:
        return {**row, "refused": str(error).splitlines()[-1].strip()}
    repq_tf.reestimate_batch_norm(model, images, verbose=False)
    options = {"calibration_data": images, "verbose": False}
    qat, row["quantize_s"] = timed(repq_tf.quantize, model, **options)
    qat.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy", run_eagerly=True)
    qat.fit(images, np.arange(len(images)), batch_size=len(images), verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.tflite"
        ends = {"input_type": "uint8"} if prepares else {}
        operators, row["export_s"] = timed(repq_tf.export_tflite, qat, path, **ends)
        report = repq_tf.check_parity(qat, path, images, verbose=False)
        row["operators"] = sum(operators.values())
        row["megabytes"] = path.stat().st_size / 1e6
        row["compared"] = sum(layer.outputs for layer in report.layers)
        row["different"] = sum(layer.different for layer in report.layers)
        paths = {"int8": path, **(others(model, images, folder) if FLAGS.compare else {})}
        times = measure_latency(list(map(str, paths.values())), images[0], FLAGS.seconds)
        row["latency_ms"] = dict(zip(paths, times, strict=True))
    return row


def others(model, images, folder):
    """The float32 file, and the converter's own int8 one: `{name: path}`."""
    import tensorflow as tf

    paths = {kind: Path(folder) / f"{kind}.tflite" for kind in ("float32", "converter")}
    repq_tf.export_tflite_float(model, paths["float32"])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    paths["converter"].write_bytes(converter.convert())
    return paths


def main(argv):
    """Measures what is not measured yet."""
    del argv
    path = Path(FLAGS.json) if FLAGS.json else None
    content = json.loads(path.read_text("utf-8")) if path and path.exists() else {}
    rows = content.get("networks", {})
    for name in FLAGS.networks:
        if name in rows:
            continue
        rows[name] = measure(name)
        print(name, json.dumps(rows[name]), flush=True)
        if path:
            content = {"image_size": FLAGS.image_size, **versions(), "networks": rows}
            write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    app.run(main)
