"""`export_onnx`: what ONNX Runtime computes of the file, and with which kernels."""

import collections
import functools
import importlib.util

import numpy as np
import pytest

import repq_tf
from repq_tf.onnx.operators import OPERATORS
from repq_tf.tflite import operators as of_tflite
from tests.deployment import test_transposed as transposed
from tests.parity.test_runtimes import (
    SLOPES,
    embedding,
    every_operator,
    functions,
    gates,
    one_output,
)
from tests.quantization.networks import (
    array,
    images,
    layers,
    network,
    quantize,
    residual,
    stock,
)
from tests.quantization.test_containers import everything, positive

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
X = images(48)


def run(path, x, optimized=None):
    """The first output of a file, and the nodes that the runtime made of it."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    # CPUs without VNNI add pairs of products in 16 bits otherwise, which saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    (y, *_) = session.run(None, {entry.name: x})
    nodes = onnx.load(path.with_suffix(".optimized")).graph.node
    return y, collections.Counter(node.op_type for node in nodes), session


def steps(qat, got, x):
    """The differences of the output, in its steps."""
    last = [la for la in qat.layers if isinstance(la, repq_tf.layers.Quantize)][-1]
    return np.rint(np.abs(got - array(qat(x))) / array(last.step))


def slopes(x):
    x = layers.Conv2D(8, 3, padding="same", name="a")(x)
    x = layers.PReLU(SLOPES, shared_axes=[1, 2], name="p")(x)
    x = layers.GlobalMaxPooling2D(name="top")(repq_tf.layers.DepthToSpace(2, name="d")(x))
    return layers.Dense(3, name="f")(x)


def smooth(x):
    x = layers.Conv2D(6, 3, padding="same", activation="elu", name="a")(x)
    x = layers.Activation("gelu", name="gelu")(layers.Conv2D(6, 3, name="b")(x))
    x = layers.ReLU(6.0, name="r")(layers.MaxPooling2D(2, 1, name="m")(x))
    x = layers.Cropping2D(((1, 0), (0, 2)), name="c")(x)
    x = layers.ReLU(name="t")(x[:, :, ::-1, 1:])
    return layers.Conv2D(3, 1, name="d")(layers.Permute((3, 1, 2), name="p")(x))


# Of layers whose arithmetic is that of ONNX Runtime, too.
EQUAL = {
    "residual": residual,
    "stock": stock,
    "gates": gates,
    "one output": one_output,
    "everything": everything,
    "slopes": slopes,
    "functions": functions,
    "smooth": smooth,
}


@functools.cache
def quantized(function, bits):
    return quantize(network(function), bits=bits)


@pytest.mark.slow(2)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("function", EQUAL.values(), ids=EQUAL.keys())
def test_the_runtime_computes_the_model_in_integers(function, bits, tmp_path):
    qat = quantized(function, bits)
    written = repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, nodes, session = run(tmp_path / "x.onnx", X)
    assert not steps(qat, got, X).any()
    assert nodes["QLinearConv"] >= written["Conv"] and nodes["QGemm"] == written.get("Gemm", 0)
    assert not {"Conv", "FusedConv", "Gemm"} & set(nodes)
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    assert [end.name for end in session.get_outputs()] == list(qat.output_names)


@pytest.mark.slow(2)
def test_interpolation_and_averages_are_rounded_otherwise(tmp_path):
    qat = quantized(every_operator, 8)
    repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, _, _ = run(tmp_path / "x.onnx", X)
    different = steps(qat, got, X)
    assert different.max() <= 2 and (different > 0).mean() < 0.3


def test_unit_vectors_are_a_step_off_at_most(tmp_path):
    """They are divided in floating point there, and rounded once."""

    def function(x):
        return layers.UnitNormalization(name="u")(x)

    qat = quantized(function, 8)
    repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, _, _ = run(tmp_path / "x.onnx", X)
    different = steps(qat, got, X)
    assert different.max() <= 1 and (different > 0).mean() < 0.1


def test_transposed_convolutions(tmp_path):
    qat = transposed.quantized(transposed.unet)
    repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, nodes, _ = run(tmp_path / "x.onnx", transposed.X)
    assert nodes["DepthToSpace"] == 3 and not nodes["ConvTranspose"]
    assert not steps(qat, got, transposed.X).any()


# What only 16-bit activations use, which are refused; and the ends of other files.
NOT_IN_ONNX = {"BATCH_TO_SPACE_ND", "SPLIT", "DEQUANTIZE", "PACK", "SHAPE", "TRANSPOSE_CONV"}


def test_every_operator_of_an_integer_file_is_taken(tmp_path):
    of_files = {
        kind
        for kind, operator in of_tflite.OPERATORS.items()
        if set(operator.versions) - {"float32"} or kind in NOT_IN_ONNX
    }
    assert set(OPERATORS) == of_files - NOT_IN_ONNX
    written = set()
    for function in (*EQUAL.values(), every_operator, embedding):
        written |= set(repq_tf.export_tflite(quantized(function, 8), tmp_path / "x.tflite"))
    assert set(OPERATORS) <= written, "an operator that no test above runs"


def test_kernels_of_four_bits_are_computed_in_floating_point(tmp_path):
    qat = quantize(positive(network(residual)), weight_bits=4)
    paths = {name: tmp_path / f"{name}.onnx" for name in ("int8", "int4")}
    for container, path in paths.items():
        written = repq_tf.export_onnx(qat, path, container=container)
        got, nodes, _ = run(path, X)
        assert not steps(qat, got, X).any()
        assert nodes["Conv"] == (written["Conv"] - 1 if container == "int4" else 0)
    assert paths["int4"].stat().st_size < paths["int8"].stat().st_size


def test_images_come_out_as_they_go_in(tmp_path):
    qat = quantize(network(lambda x: layers.Conv2D(4, 3, name="a")(x)))
    repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, _, _ = run(tmp_path / "x.onnx", X)
    assert got.shape == (48, 8, 8, 4) and not steps(qat, got, X).any()


def test_nodes_and_integers_are_the_models(tmp_path):
    qat = quantize(network(residual))
    repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert {"stem", "ac", "vgg", "logits"} <= {node.name for node in graph.node}
    found = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    integers, scale, bias, _ = qat.get_layer("stem").integer_weights(
        qat.get_layer("image_quantize").step
    )
    kernel = found["stem/kernel/levels"]
    np.testing.assert_array_equal(kernel, array(integers).transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found["stem/kernel/scale"], array(scale))
    np.testing.assert_array_equal(found["stem/bias/levels"], array(bias))


def test_what_it_refuses(tmp_path, monkeypatch):
    path = tmp_path / "x.onnx"
    model = network(lambda x: layers.Conv2D(3, 3, name="a")(x))
    for options in ({"container": "int4"}, {"container": "int2"}):
        with pytest.raises(ValueError, match="container.*Received"):
            repq_tf.export_onnx(quantize(model, weight_bits=8), path, **options)
    with pytest.raises(ValueError, match="activations of at most 8 bits for ONNX"):
        repq_tf.export_onnx(quantize(model, activation_bits=16), path)
    with pytest.raises(ValueError, match="is not quantized; export what repq_tf.quantize"):
        repq_tf.export_onnx(model, path)
    with pytest.raises(FileNotFoundError):
        repq_tf.export_onnx(model, tmp_path / "missing" / "x.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "repq_tf\[onnx\]"'):
        repq_tf.export_onnx(model, path)
    assert not list(tmp_path.iterdir())
