"""`export_onnx`: what OpenVINO computes of the file, and with which kernels."""

import collections
from pathlib import Path

import pytest

import repq_tf
from tests.onnx.test_export_onnx import EQUAL, X, quantized, steps
from tests.quantization.networks import array, network, quantize, residual
from tests.quantization.test_containers import positive

pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")


def run(path, x):
    """The first output of a file, and `(kind, precision)` of the layers that ran it."""
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    found = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    names = "layerType", "runtimePrecision"
    layers = collections.Counter(tuple(str(of[n].astype(str)) for n in names) for of in found)
    return compiled(x)[0], layers


def saturates():
    """Whether it adds products in pairs of 16 bits: on x86 processors without VNNI."""
    told = Path("/proc/cpuinfo")
    flags = told.read_text(encoding="utf-8") if told.exists() else ""
    return "avx2" in flags and "_vnni" not in flags


SATURATES = pytest.mark.skipif(saturates(), reason="this CPU has no VNNI: OpenVINO saturates")
# A sum is added before the convolution behind it is rounded, means otherwise: steps at most.
NEAR = {"residual": 1, "everything": 8}
# With kernels of 7 bits, which saturate nowhere, 1 and 5 values of these lie so near to a tie
# that OpenVINO's scales, in float32, send them to the other side.
NARROW = {"functions": 2, "smooth": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits", [pytest.param(8, marks=SATURATES), 7, pytest.param(4, marks=SATURATES)]
)
@pytest.mark.parametrize("name", EQUAL)
def test_weighted_layers_run_in_integers(name, bits, tmp_path):
    near = NEAR.get(name, 0)
    if bits == 7:
        qat = quantize(network(EQUAL[name]), rules={"*": {"weight_bits": 7}})
        near = NARROW.get(name, near)
    else:
        qat = quantized(EQUAL[name], bits)
    written = repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, layers = run(tmp_path / "x.onnx", X)
    assert layers["Convolution", "u8"] == written["Conv"]
    assert layers["FullyConnected", "u8"] == written.get("Gemm", 0)
    assert not {("Convolution", "f32"), ("FullyConnected", "f32")} & set(layers)
    assert steps(qat, got, X).max() <= near
    assert (got.argmax(-1) == array(qat(X)).argmax(-1)).mean() >= 0.97


@pytest.mark.parametrize("ends", [pytest.param(8, marks=SATURATES), 7])
def test_kernels_of_four_bits_are_computed_in_floating_point(ends, tmp_path):
    rules = {name: {"weight_bits": ends} for name in ("stem", "logits")}
    qat = quantize(positive(network(residual)), weight_bits=4, rules=rules)
    written = repq_tf.export_onnx(qat, tmp_path / "x.onnx", container="int4")
    got, layers = run(tmp_path / "x.onnx", X)
    assert layers["Convolution", "f32"] == written["Conv"] - 1  # the first has more bits
    assert steps(qat, got, X).max() <= 1
