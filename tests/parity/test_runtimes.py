"""`with_runtime` and `check_parity(..., runtime=...)`: the integers of other runtimes.

LiteRT's reference kernels and TensorFlow Lite Micro run here; ARM in `tests/runtimes/`.
"""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, DepthToSpace, RepVGGBlock, SqueezeExcite
from repq_tf.tflite import micro
from tests.deployment.files import assert_exact
from tests.deployment.test_wide_activations import shared_scales, sums_and_means
from tests.quantization.networks import array, images, layers, network, quantize
from tests.quantization.test_containers import everything, positive

X = images(24)
SLOPES = keras.initializers.RandomUniform(-0.5, 1.5, seed=0)


def every_operator(x):
    x = layers.Conv2D(6, 3, padding="same", name="a")(x)
    x = layers.PReLU(SLOPES, shared_axes=[1, 2], name="p")(x)
    y = layers.LeakyReLU(0.1, name="l")(RepVGGBlock(6, name="vgg")(x))
    x = layers.Add(name="s")([x, ACBlock(6, activation="relu6", name="ac")(y)])
    x = layers.Concatenate(name="cat")([x, y])
    x = layers.UpSampling2D((2, 3), interpolation="bilinear", name="u")(x)
    x = layers.AveragePooling2D(3, 2, name="v")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="d")(x)
    return layers.Dense(5, name="f")(layers.GlobalAveragePooling2D(name="m")(x))


def gates(x):
    x = layers.Conv2D(6, 3, padding="same", activation="hard_silu", name="a")(x)
    x = layers.Conv2D(6, 3, activation="silu", name="b")(SqueezeExcite(2, name="se")(x))
    x = layers.Conv2D(4, 3, activation="sigmoid", name="c")(x)
    x = layers.UpSampling2D(2, name="u")(DepthToSpace(2, name="shuffled")(x))
    x = layers.MaxPooling2D(2, name="q")(layers.ZeroPadding2D(1, name="z")(x))
    return layers.Softmax(name="s")(layers.Dense(7, name="f")(layers.Flatten(name="flat")(x)))


def one_output(x):
    x = layers.Conv2D(8, 3, activation="relu6", name="a")(x)
    x = layers.ReLU(6.0, name="r")(layers.Add(name="s")([x, layers.Conv2D(8, 1, name="b")(x)]))
    return layers.Dense(1, name="one")(layers.Flatten(name="flat")(x))


def functions(x):
    x = layers.Conv2D(6, 3, padding="same", activation="tanh", name="a")(x)
    y = layers.Conv2D(6, 3, padding="same", activation="softplus", name="b")(x)
    x = layers.Subtract(name="difference")([x, y])
    x = layers.Maximum(name="most")([x, layers.Activation("mish", name="mish")(x)])
    x = layers.Minimum(name="least")([x[:, 1:, ::2], y[:, 1:, ::2]])
    return layers.Conv2D(3, 1, name="c")(layers.Permute((2, 1, 3), name="turned")(x))


def embedding(x):
    x = layers.UnitNormalization(name="n")(layers.Conv2D(6, 3, name="a")(x))
    x = layers.Dense(40, name="f")(layers.Flatten(name="flat")(x))
    return layers.UnitNormalization(name="u")(x)


def function(name):
    return lambda x: layers.Activation(name, name=name)(layers.Conv2D(3, 3, name="a")(x))


NETWORKS = {
    "operators": every_operator,
    "gates": gates,
    "one output": one_output,
    "functions": functions,
    "embedding": embedding,
}
# A runtime, a function that it has, and one that it lacks.
LACKING = [("tflm", "elu", "gelu"), ("reference", "gelu", "elu")]
HERE = ("reference", "tflm") if micro.is_installed() else ("reference",)


@pytest.mark.slow(4)
@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("function", NETWORKS.values(), ids=NETWORKS.keys())
def test_models_compute_what_runtimes_compute(function, bits, tmp_path):
    path, qat = tmp_path / "x.tflite", quantize(network(function), bits=bits)
    repq_tf.export_tflite(qat, path)
    for runtime in HERE:
        assert_exact(repq_tf.check_parity(qat, path, X, runtime=runtime, verbose=False))


@pytest.mark.parametrize(("runtime", "runs", "lacks"), LACKING)
def test_functions_that_a_runtime_lacks_are_refused(runtime, runs, lacks, tmp_path):
    path, qat = tmp_path / "x.tflite", quantize(network(function(lacks)))
    repq_tf.export_tflite(qat, path)
    with pytest.raises(ValueError, match=f"no operator {lacks.upper()}.*layers {lacks}"):
        repq_tf.check_parity(qat, path, X, runtime=runtime)
    qat = quantize(network(function(runs)))
    repq_tf.export_tflite(qat, path)
    if runtime in HERE:
        assert_exact(repq_tf.check_parity(qat, path, X, runtime=runtime))


def with_steps(name, step_in, step):
    """A quantized network of a function, and its file's steps before and behind it."""
    qat = quantize(network(function(name)))
    for layer, value in (("a_quantize", step_in), (name, step)):
        qat.get_layer(layer).activation_quantizer.set_step(np.float32(value))
    return qat


def test_ties_of_elu_are_each_runtimes_own(tmp_path):
    """Every other level of the input is a tie, which TensorFlow Lite Micro rounds upwards."""
    qat = with_steps("elu", 1 / 16, 1 / 8)
    assert repq_tf.export_tflite(qat, tmp_path / "x.tflite")["ELU"] == 1
    assert np.any(array(qat(X)) != array(repq_tf.with_runtime(qat, "tflm")(X)))
    for runtime in ("xnnpack", *(set(HERE) - {"reference"})):
        assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", X, runtime=runtime))


def test_a_table_runs_where_its_operator_is_lacking(tmp_path):
    qat = with_steps("gelu", 0.01, 0.01)
    given, layer = qat.get_layer("a_quantize"), qat.get_layer("gelu")
    for pair in np.random.default_rng(0).uniform(0.01, 0.1, (200, 2)):
        for one, step in zip((given, layer), pair, strict=True):
            one.activation_quantizer.set_step(np.float32(step))
        if not layer.is_certain(keras.ops.convert_to_tensor(given.step)):
            break
    assert "GATHER" in repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    for runtime in HERE:
        assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", X, runtime=runtime))


def narrow(x):
    x = layers.Conv2D(8, 3, activation="relu", name="a")(x)
    return layers.Conv2D(6, 1, name="c")(layers.Conv2D(8, 3, name="b")(x))


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    ("function", "runtimes"), [(everything, ["reference"]), (narrow, HERE)]
)
def test_kernels_of_four_bits(function, runtimes, tmp_path):
    qat = quantize(positive(network(function)), weight_bits=4)
    repq_tf.export_tflite(qat, tmp_path / "x.tflite", container="int4")
    for runtime in runtimes:
        assert_exact(repq_tf.check_parity(qat, tmp_path / "x.tflite", X, runtime=runtime))


@pytest.fixture(scope="module")
def qat():
    return quantize(network(every_operator))


@pytest.mark.slow
def test_a_model_of_another_runtime_is_saved_and_goes_back(qat, tmp_path):
    copy = repq_tf.with_runtime(qat, "reference")
    assert not np.array_equal(array(copy(X)), array(qat(X)))
    copy.save(tmp_path / "copy.keras")
    loaded = keras.models.load_model(tmp_path / "copy.keras", compile=False)
    np.testing.assert_array_equal(array(loaded(X)), array(copy(X)))
    back = repq_tf.with_runtime(loaded, "xnnpack")
    np.testing.assert_array_equal(array(back(X)), array(qat(X)))


def test_int8_files_without_products_and_means_are_equal_on_arm():
    def function(x):
        x = ACBlock(6, activation="relu", name="ac")(x)
        return layers.Add(name="s")([x, layers.LeakyReLU(0.1)(RepVGGBlock(6, name="v")(x))])

    qat = quantize(network(function))
    phone = repq_tf.with_runtime(qat, "xnnpack_arm")
    np.testing.assert_array_equal(array(phone(X[:4])), array(qat(X[:4])))


def test_bad_runtimes(qat):
    for bad in ("arm", None, 3):
        with pytest.raises(ValueError, match=r"runtime must be one of .*Received"):
            repq_tf.with_runtime(qat, bad)
    with pytest.raises(ValueError, match="container must be one of"):
        repq_tf.with_runtime(qat, "tflm", "int2")
    with pytest.raises(ValueError, match="container='int4' is for models with kernels of at"):
        repq_tf.with_runtime(qat, "tflm", "int4")


def weights(x):
    x = layers.Conv2D(8, 3, activation="relu6", name="a")(x)
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(layers.DepthwiseConv2D(3, name="d")(x))
    return layers.Dense(1, name="one")(layers.Flatten(name="flat")(x))


@pytest.mark.slow(3)
@pytest.mark.parametrize("function", [weights, sums_and_means, shared_scales])
@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_sixteen_bits(function, kind, tmp_path):
    path, qat = tmp_path / "x.tflite", quantize(network(function), activation_bits=16)
    repq_tf.export_tflite(qat, path, input_type=kind)
    for runtime in HERE:
        assert_exact(repq_tf.check_parity(qat, path, X, runtime=runtime, verbose=False))


def test_without_the_package_that_runs_it(qat, tmp_path, monkeypatch):
    monkeypatch.setattr(micro, "is_installed", lambda: False)
    repq_tf.export_tflite(qat, tmp_path / "x.tflite")
    with pytest.raises(ValueError, match="pip install --pre tflite-micro"):
        repq_tf.check_parity(qat, tmp_path / "x.tflite", X[:1], runtime="tflm")
