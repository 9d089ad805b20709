"""Files on an emulated 64-bit ARM, where LiteRT rounds as on phones: `xnnpack_arm`.

    sh tests/runtimes/setup_arm.sh ~/arm python3.11
    REPQ_ARM=~/arm pytest tests/runtimes

The script takes a minute and needs Debian 12 and pip, but no root; `REPQ_ARM` is the folder
that it made.
"""

import pytest

import repq_tf
from repq_tf.layers import DepthToSpace
from tests.deployment.test_wide_activations import shared_scales, sums_and_means
from tests.parity.test_runtimes import SLOPES, every_operator, functions, gates, one_output
from tests.quantization.networks import images, layers, network, quantize, residual, stock
from tests.quantization.test_containers import everything, positive
from tests.runtimes.arm import FOLDER, differing, run_files, write_input

X = images(8)


def upscaling(x):
    x = layers.Conv2D(8, 3, padding="same", name="a")(x)
    x = layers.PReLU(SLOPES, shared_axes=[1, 2], name="p")(x)
    x = layers.ReLU(negative_slope=0.1, name="l")(layers.Conv2D(8, 3, name="b")(x))
    x = layers.GlobalMaxPooling2D(keepdims=True, name="top")(DepthToSpace(2, name="d")(x))
    return layers.Conv2D(3, 1, name="c")(x)


FUNCTIONS = {
    "operators": every_operator,
    "gates": gates,
    "functions": functions,
    "one_output": one_output,
    "everything": everything,
    "residual": residual,
    "stock": stock,
    "upscaling": upscaling,
}
# Networks with those operators of which no runtime's arithmetic is another one's.
ALIKE = ("functions", "one_output", "everything", "upscaling")


def plans():
    """Yields what each file is: `(name, function, seed, options, container)`."""
    for seed in (0, 1):
        for bits in (8, 4, 2):
            for name, function in FUNCTIONS.items():
                yield f"{name}_{bits}_{seed}", function, seed, {"bits": bits}, "int8"
        yield f"packed_{seed}", everything, seed, {"weight_bits": 4}, "int4"
        for function in (sums_and_means, shared_scales, everything):
            options = {"activation_bits": 16}
            yield f"wide_{function.__name__}_{seed}", function, seed, options, "int8"


def write(folder):
    """Writes files and what they are given; returns `{name: (model, container)}`."""
    found = {}
    for name, function, seed, options, container in plans():
        model = network(function, seed=seed)
        model = positive(model) if container == "int4" else model
        qat = quantize(model, **options)
        repq_tf.export_tflite(qat, folder / f"{name}.tflite", container=container)
        write_input(qat, folder / f"{name}.tflite", X)
        found[name] = qat, container
    return found


@pytest.mark.skipif(
    FOLDER is None,
    reason="needs an emulated ARM: sh tests/runtimes/setup_arm.sh ~/arm python3.11, then "
    "REPQ_ARM=~/arm",
)
@pytest.mark.slow(120)
def test_models_compute_what_phones_compute(tmp_path):
    models = write(tmp_path)
    assert len(models) >= 40
    run_files(tmp_path)
    wrong = []
    for name, (qat, container) in models.items():
        alike = name.startswith(ALIKE)
        for runtime in ("xnnpack_arm", "xnnpack") if alike else ("xnnpack_arm",):
            found = differing(qat, runtime, container, tmp_path / f"{name}.tflite", X)
            wrong += [(name, runtime, *row) for row in found.items()]
    assert not wrong, wrong
    # Kernels of 4 bits are what the two round differently most often.
    qat, container = models["packed_0"]
    assert differing(qat, "xnnpack", container, tmp_path / "packed_0.tflite", X)
