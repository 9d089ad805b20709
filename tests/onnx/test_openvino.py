"""`export_onnx`: what OpenVINO computes of the file, and with which kernels."""

import collections
from pathlib import Path

import numpy as np
import pytest

import repq_tf
from repq_tf.graphs import evaluate, read_graph
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
# Those of a CPU without VNNI; kernels of 7 bits do not saturate there.
NARROW = {"functions": 2, "smooth": 1}


def clear(qat, x):
    """Of which images float32 can tell every convolution's sums from a tie, in float64."""
    sums, least = {}, np.ones(len(x))

    def call(node, args, kwargs):
        layer = node.layer
        if isinstance(layer, repq_tf.layers.ReparamConv):
            sums[node.name] = layer(*args, **kwargs, wide=True)
            return sums[node.name]
        if type(layer) is repq_tf.layers.Quantize and node.inputs[0].node in sums:
            grid = layer.activation_quantizer
            levels = array(sums[node.inputs[0].node][0]) / np.float64(layer.step)
            clamped = (levels < grid.low - 1) | (levels > grid.high + 1)
            far = np.where(clamped, 1, np.abs(levels % 1 - 0.5))
            np.minimum(least, far.reshape(len(x), -1).min(1), out=least)
        return layer(*args, **kwargs)

    evaluate(read_graph(qat), lambda node: x, call)
    return least > 2 * 160 * 2**-24  # two roundings of up to 160 levels


@pytest.mark.slow
@pytest.mark.parametrize(
    "bits", [pytest.param(8, marks=SATURATES), 7, pytest.param(4, marks=SATURATES)]
)
@pytest.mark.parametrize("name", EQUAL)
def test_weighted_layers_run_in_integers(name, bits, tmp_path):
    near, told = NEAR.get(name, 0), slice(None)
    if bits == 7:
        qat = quantize(network(EQUAL[name]), rules={"*": {"weight_bits": 7}})
        near = NARROW.get(name, near) if saturates() else near
        told = clear(qat, X)
        assert told.mean() > 0.8
    else:
        qat = quantized(EQUAL[name], bits)
    written = repq_tf.export_onnx(qat, tmp_path / "x.onnx")
    got, layers = run(tmp_path / "x.onnx", X)
    assert layers["Convolution", "u8"] == written["Conv"]
    assert layers["FullyConnected", "u8"] == written.get("Gemm", 0)
    assert not {("Convolution", "f32"), ("FullyConnected", "f32")} & set(layers)
    assert steps(qat, got, X)[told].max() <= near
    assert (got.argmax(-1) == array(qat(X)).argmax(-1)).mean() >= 0.97


@pytest.mark.parametrize("ends", [pytest.param(8, marks=SATURATES), 7])
def test_kernels_of_four_bits_are_computed_in_floating_point(ends, tmp_path):
    rules = {name: {"weight_bits": ends} for name in ("stem", "logits")}
    qat = quantize(positive(network(residual)), weight_bits=4, rules=rules)
    written = repq_tf.export_onnx(qat, tmp_path / "x.onnx", container="int4")
    got, layers = run(tmp_path / "x.onnx", X)
    assert layers["Convolution", "f32"] == written["Conv"] - 1  # the first has more bits
    assert steps(qat, got, X).max() <= 1
