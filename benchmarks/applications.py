"""The networks of `keras.applications`, quantized and exported: parity, sizes and latencies.

    python benchmarks/applications.py --json=benchmarks/results/applications.json

Every network is built as `keras.applications` does, without weights and with statistics of
photographs, and goes through `quantize`, one step of `fit`, `export_tflite` and
`check_parity`; through `reparameterize` and `merge`; and one of each family inside of another
model. Random weights make no accuracy, but rounding and parity are those of any. The quantized
logits are correlated with the float ones; and so are, for comparison, those of the float
network with the noise of 8 bits (`float_noise.py`). Each network has a process of its own, and
what the JSON file holds is not run again.

    python benchmarks/applications.py --passes=others,latency --files=runs/applications \
        --json=benchmarks/results/applications.json

writes the float32 file, the one that TensorFlow's converter makes post-training and, where the
first pass was run without the folder, ours, and then runs all
three in turn: the least time of many runs of each is that which other work of the
machine disturbed least.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags
from float_noise import noisy
from sklearn.datasets import load_sample_image

import repq_tf
from repq_tf.files import write_atomically
from repq_tf.keras_api import keras
from repq_tf.layers import QuantizedSoftmax
from repq_tf.layers.stock import MAPS
from repq_tf.quantization.quantize import check_quantizable
from repq_tf.train.interpreter import measure_latency
from repq_tf.train.stages.report import versions

# Smallest first.
NETWORKS = """
    MobileNetV3Small MobileNetV2 MobileNet MobileNetV3Large EfficientNetB0 NASNetMobile
    EfficientNetV2B0 DenseNet121 EfficientNetB1 EfficientNetV2B1 EfficientNetB2
    EfficientNetV2B2 EfficientNetB3 EfficientNetV2B3 DenseNet169 InceptionV3 Xception
    EfficientNetB4 DenseNet201 ResNet50 ResNet50V2 EfficientNetV2S EfficientNetB5 ResNet101
    ResNet101V2 EfficientNetB6 InceptionResNetV2 EfficientNetV2M ResNet152 ResNet152V2
    EfficientNetB7 NASNetLarge EfficientNetV2L VGG16 VGG19 ConvNeXtTiny ConvNeXtSmall
    ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge
""".split()
# One of each family, inside of another model.
NESTED = """
    MobileNetV3Small MobileNetV2 MobileNet EfficientNetB0 NASNetMobile EfficientNetV2B0
    DenseNet121 InceptionV3 Xception ResNet50 ResNet50V2 InceptionResNetV2 VGG16
""".split()
ROWS = [*NETWORKS, *(f"nested {name}" for name in NESTED)]
PHOTOGRAPHS = ("china", "flower")
PASSES = ("parity", "others", "latency")

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", ROWS, "Networks of keras.applications, by name.")
flags.DEFINE_list("passes", ["parity"], f"Some of {', '.join(PASSES)}.")
flags.DEFINE_integer("image_size", 96, "Height and width of the images.")
flags.DEFINE_integer("images", 8, "Images to calibrate with, to train on and to compare.")
flags.DEFINE_float("seconds", 10.0, "Time to spend on runs of each network's files.")
flags.DEFINE_string("files", None, "Folder that keeps the networks' files.")
flags.DEFINE_string("json", None, "File for the results; what it holds is not run again.")
flags.DEFINE_string("row", None, "Measure this row in this process, by the pass given.")


def build(row):
    """An untrained network with statistics of its features, and images for it."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    size, name = FLAGS.image_size, row.removeprefix("nested ")
    shape = (size, size, 3)
    make = getattr(keras.applications, name)
    if row == name:
        model = inner = make(weights=None, input_shape=shape)
    else:
        inner = make(weights=None, input_shape=shape, include_top=False, pooling="avg")
        inputs = keras.Input(shape)
        outputs = keras.layers.Dense(10, "softmax")(inner(inputs))
        model = keras.Model(inputs, outputs)
    for layer in inner.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            shape = layer.beta.shape
            layer.beta.assign(rng.normal(0, 0.3, shape))
            if layer.gamma is not None:
                signs = rng.choice((1, 1, 1, -1), shape)
                layer.gamma.assign(signs * rng.uniform(0.5, 1.5, shape))
    images = photographs(rng)
    prepares = any(isinstance(layer, MAPS) for layer in inner.layers)
    return model, images if prepares else images / np.float32(127.5) - 1, prepares


def photographs(rng):
    """Crops of the two photographs of scikit-learn, pixels of 0 ... 255."""
    sources, side, crops = [load_sample_image(f"{name}.jpg") for name in PHOTOGRAPHS], 192, []
    for number in range(FLAGS.images):
        source = sources[number % len(sources)]
        top, left = (int(rng.integers(0, length - side)) for length in source.shape[:2])
        crops.append(source[top : top + side, left : left + side])
    size = (FLAGS.image_size, FLAGS.image_size)
    images = keras.ops.image.resize(np.stack(crops).astype("float32"), size, antialias=True)
    return np.round(keras.ops.convert_to_numpy(images))


def timed(function, *args, **options):
    """What a function returns, and the CPU seconds that it took."""
    start = time.process_time()
    return function(*args, **options), time.process_time() - start


def float_logits(model, images):
    """What a float model's last softmax reads."""
    last = model.layers[-1]
    activation, last.activation = last.activation, keras.activations.linear
    logits = model(images, training=False)
    last.activation = activation
    return keras.ops.convert_to_numpy(logits)


def quantized_logits(qat, images):
    """Likewise, of a quantized model."""
    (softmax,) = (layer for layer in qat.layers if isinstance(layer, QuantizedSoftmax))
    return keras.ops.convert_to_numpy(keras.Model(qat.inputs, softmax.input[0])(images))


def correlations(ours, theirs):
    """Of logits, and of what differs in them from image to image."""
    return [
        float(np.corrcoef(f(ours).ravel(), f(theirs).ravel())[0, 1])
        for f in (np.float64, lambda logits: np.float64(logits) - logits.mean(0))
    ]


def largest_difference(ours, theirs):
    """The largest difference, of the logits' deviation."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def parity(row, folder):
    """Quantizes, trains, exports and compares a network."""
    model, images, prepares = build(row)
    entry = {"layers": len(model.layers), "parameters": model.count_params()}
    try:
        check_quantizable(model)
    except ValueError as error:
        return {**entry, "refused": " ".join(str(error).split())}
    repq_tf.reestimate_batch_norm(model, images, verbose=False)
    logits = float_logits(model, images)
    options = {"calibration_data": images, "verbose": False}
    qat, entry["quantize_s"] = timed(repq_tf.quantize, model, **options)
    entry["correlation"] = correlations(quantized_logits(qat, images), logits)
    qat.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy", run_eagerly=True)
    qat.fit(images, np.arange(len(images)), batch_size=len(images), verbose=0)
    path = folder / f"{row}.int8.tflite"
    operators, entry["export_s"] = timed(export, qat, path, prepares)
    report = repq_tf.check_parity(qat, path, images, verbose=False)
    entry["operators"] = sum(operators.values())
    entry["megabytes"] = path.stat().st_size / 1e6
    entry["compared"] = sum(layer.outputs for layer in report.layers)
    entry["different"] = sum(layer.different for layer in report.layers)
    del qat

    entry["merge_error"] = largest_difference(
        float_logits(repq_tf.merge(model), images), logits
    )
    wide = repq_tf.reparameterize(model, "acnet", **options)
    entry["blocks"] = sum(isinstance(x, repq_tf.layers.ReparamConv) for x in wide.layers)
    entry["reparameterize_error"] = largest_difference(
        float_logits(repq_tf.merge(wide), images), logits
    )
    if row in NETWORKS:
        entry["noise"] = correlations(float_logits(noisy(model), images), logits)
    entry["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return entry


def export(qat, path, prepares):
    """Writes the file of a quantized network, of pixels if it prepares them."""
    path.unlink(missing_ok=True)
    return repq_tf.export_tflite(qat, path, **({"input_type": "uint8"} if prepares else {}))


def others(row, folder):
    """Writes a network's float32 file and the converter's own int8 one, and ours if missing."""
    import tensorflow as tf

    model, images, prepares = build(row)
    repq_tf.reestimate_batch_norm(model, images, verbose=False)
    path = folder / f"{row}.int8.tflite"
    if not path.exists():
        qat = repq_tf.quantize(model, calibration_data=images, verbose=False)
        export(qat, path, prepares)
    path = folder / f"{row}.float32.tflite"
    path.unlink(missing_ok=True)
    repq_tf.export_tflite_float(model, path)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8 if prepares else tf.int8
    converter.inference_output_type = tf.int8
    sizes = {"float32": path.stat().st_size / 1e6}
    try:
        content = converter.convert()
    except Exception as error:
        return {"others_megabytes": sizes, "converter_failed": str(error).splitlines()[0]}
    (folder / f"{row}.converter.tflite").write_bytes(content)
    return {"others_megabytes": {**sizes, "converter": len(content) / 1e6}}


def latency(row, folder):
    """Runs a network's files in turn: the least milliseconds of each."""
    paths = {kind: folder / f"{row}.{kind}.tflite" for kind in ("int8", "float32", "converter")}
    paths = {kind: str(path) for kind, path in paths.items() if path.exists()}
    image = photographs(np.random.default_rng(0))[0]
    times = measure_latency(
        list(paths.values()), image, FLAGS.seconds, most=100_000, summary=np.min
    )
    return {"least_ms": dict(zip(paths, times, strict=True))}


# By pass: what it does, and what of a row says that it was done.
DONE = {
    "parity": (parity, ("different", "refused")),
    "others": (others, ("others_megabytes",)),
    "latency": (latency, ("least_ms",)),
}


def in_process(row, name):
    """What a pass finds of a row, or that it failed, in a process of its own."""
    options = [f"--{flag}={FLAGS[flag].value}" for flag in ("image_size", "images", "seconds")]
    if FLAGS.files:
        options.append(f"--files={FLAGS.files}")
    command = [sys.executable, __file__, *options, f"--passes={name}", f"--row={row}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        print(done.stderr, flush=True)
        return {"failed": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def child(row):
    """Prints what a pass finds of a row."""
    function, _ = DONE[FLAGS.passes[0]]
    sys.setrecursionlimit(10_000)  # by which Keras connects the deepest, with noise in between
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(FLAGS.files or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(function(row, folder)))


def wanted(row, name, rows):
    """Whether a pass is to be run of a row."""
    found = rows.get(row, {})
    if name != "parity" and (row not in NETWORKS or "different" not in found):
        return False
    return not any(key in found for key in DONE[name][1])


HEAD = (
    *("network", "layers", "quantize s", "export s", "operators", "MB", "stored values"),
    *("that differ", "correlation", "of noise", "int8 ms", "float32 ms", "converter's ms"),
)


def table(rows):
    """Prints the table in Markdown."""
    known = [cells(row, rows[row]) for row in ROWS if row in rows]
    for line in (HEAD, ["-"] * len(HEAD), *known):
        print(f"| {' | '.join(line)} |")


def cells(name, row):
    """A row as cells, under `HEAD`."""
    if "different" not in row:
        return [name, str(row.get("layers", "")), row.get("refused", row.get("failed", ""))]
    times = row.get("least_ms", {})
    return [
        *(name, str(row["layers"]), f"{row['quantize_s']:.0f}", f"{row['export_s']:.0f}"),
        *(str(row["operators"]), f"{row['megabytes']:.1f}", f"{row['compared'] / 1e6:.1f} M"),
        *(str(row["different"]), f"{row['correlation'][0]:.3f}"),
        f"{row['noise'][0]:.3f}" if "noise" in row else "",
        *(f"{times[k]:.2f}" if k in times else "" for k in ("int8", "float32", "converter")),
    ]


def main(argv):
    """Measures what is not measured yet, and prints the table."""
    del argv
    if FLAGS.row:
        child(FLAGS.row)
        return
    path = Path(FLAGS.json) if FLAGS.json else None
    content = json.loads(path.read_text("utf-8")) if path and path.exists() else {}
    rows = content.get("networks", {})
    for name in FLAGS.passes:
        for row in FLAGS.networks:
            if not wanted(row, name, rows):
                continue
            known = {k: v for k, v in rows.get(row, {}).items() if k != "failed"}
            found = {**known, **in_process(row, name)}
            print(row, json.dumps(found), flush=True)
            rows[row] = found
            if path:
                content = {"image_size": FLAGS.image_size, **versions(), "networks": rows}
                write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    table(rows)


if __name__ == "__main__":
    app.run(main)
