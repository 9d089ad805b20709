"""What a random network must do: end in a file that computes what was trained, or refuse."""

import tempfile
from pathlib import Path

import keras
import numpy as np

import repq_tf
from tests.fuzz import draws as st
from tests.runtimes import arm

BITS = st.integers(2, 8)
SETTINGS = st.fixed_dictionaries(
    {
        "weight_bits": BITS,
        "activation_bits": BITS,
        "bn_statistics": st.sampled_from(repq_tf.branches.MODES),
        "per_channel": st.booleans(),
        # Of single layers, the first and the last ones too: position to bits.
        "mixed": st.dictionaries(st.integers(0, 7), st.tuples(BITS, BITS), max_size=4),
    }
)


def with_rules(model, settings):
    """The arguments of `quantize` for drawn settings."""
    stock = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
    weighted = [
        layer
        for layer in model.layers
        if isinstance(layer, (*stock, repq_tf.layers.ReparamConv, keras.layers.PReLU))
    ]
    rules = []
    for position, (weight, activation) in settings["mixed"].items():
        if position < len(weighted):
            layer, rule = weighted[position], {"activation_bits": activation}
            if not isinstance(layer, keras.layers.PReLU):
                rule["weight_bits"] = weight
            rules.append((layer.name, rule))
    return {**{k: v for k, v in settings.items() if k != "mixed"}, "rules": rules}


def randomize(model, rng):
    """Gives every weight a random value, the same for the same network."""
    for weight in model.weights:
        name, shape = weight.path.rsplit("/", 1)[-1], tuple(weight.shape)
        if "kernel" in name:
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        elif name in ("gamma", "gain", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.3, shape)
        weight.assign(value)


def make(model, settings, path, input_type="int8"):
    """Quantizes, trains a step and exports; pixels that a model prepares, as `input_type`.

    Returns:
        The quantized model and images.

    Raises:
        ValueError: the library refuses the network.
        AssertionError: training or export did what it must not.
    """
    rng = np.random.default_rng(0)
    randomize(model, rng)
    pixels = model.inputs[0].name == "pixels"
    shapes = [(24, *tensor.shape[1:]) for tensor in model.inputs]
    x = [rng.integers(0, 256, s) if pixels else rng.normal(0.3, 1, s) for s in shapes]
    x = [images.astype("float32") for images in x]
    x = x if len(x) > 1 else x[0]
    options = with_rules(model, settings)
    qat = repq_tf.quantize(model, calibration_data=x, verbose=False, **options)
    targets = rng.normal(size=(24, *model.output_shape[1:]))
    qat.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    loss = qat.train_on_batch(x, targets)
    assert np.isfinite(loss), "the loss is not finite"
    try:
        repq_tf.export_tflite(qat, path, input_type=input_type if pixels else "int8")
    except ValueError:
        assert not path.exists(), "a refused export left a file"
        raise
    return qat, x


def check(model, settings, runtimes=("xnnpack",)):
    """Quantizes, trains a step, exports and compares.

    Returns:
        "exact" or "refused: MESSAGE".

    Raises:
        AssertionError: the file computes something else.
        Exception: anything but a ValueError of the library.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        try:
            ends = "uint8" if tuple(runtimes) == ("xnnpack",) else "int8"  # others lack GATHER
            qat, x = make(model, settings, path, ends)
            for runtime in runtimes:
                repq_tf.with_runtime(qat, runtime)  # which refuses what it lacks
        except ValueError as error:
            return f"refused: {error}"
        for runtime in runtimes:
            report = repq_tf.check_parity(qat, path, x, runtime=runtime)
            assert not any(layer.different for layer in report.layers), str(report)
    return "exact"


class OnArm:
    """Checks many networks at once on the emulated ARM.

    Args:
        folder: where their files lie.
    """

    def __init__(self, folder):
        self._folder, self._waiting = Path(folder), {}

    def add(self, model, settings):
        """Makes a file; returns "waiting" or "refused: MESSAGE"."""
        path = self._folder / f"{len(self._waiting)}.tflite"
        try:
            qat, x = make(model, settings, path)
        except ValueError as error:
            return f"refused: {error}"
        try:
            arm.write_input(qat, path, x)
        except Exception:  # the others' files are to be run
            path.unlink()
            raise
        self._waiting[path] = qat, x, describe(model, settings)
        return "waiting"

    def verdicts(self):
        """Runs all files; yields what each is and "exact" or "wrong: LAYERS"."""
        arm.run_files(self._folder)
        for path, (qat, x, case) in self._waiting.items():
            wrong = arm.differing(qat, "xnnpack_arm", "int8", path, x)
            yield case, f"wrong: {wrong}" if wrong else "exact"


def describe(model, settings):
    """One line that names a network."""
    return f"{' > '.join(kinds(model))} {model.input_shape} {settings}"


def kinds(model):
    """What a network is made of, in order: layers, operations, activations of their own."""
    found = []
    for operation in model.operations:
        if isinstance(operation, keras.Model):
            found += kinds(operation)
        elif isinstance(operation, keras.layers.Activation):
            found.append(f"Activation:{keras.activations.serialize(operation.activation)}")
        elif not isinstance(operation, keras.layers.InputLayer):
            layer = isinstance(operation, keras.layers.Layer)
            name = type(operation).__name__
            found.append(name if layer else f"operation {name}")
    return found
