"""Tables of functions: every level, against the runtimes' operators."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from repq_tf.layers import Quantize, QuantizedLookup, QuantizedTanh
from repq_tf.tflite import micro
from tests.deployment.files import assert_exact, operator_file, parity, run_operator

ops = keras.ops
ALL = np.arange(-128, 128)


def in_xnnpack(kind, *grids):
    options = schema.GeluOptionsT() if kind == "GELU" else None
    content = operator_file(kind, *grids, options, version=2 if kind == "GELU" else 1)
    return run_operator(content, ALL[None])[0]


def in_tflm(kind, *grids):
    interpreter = micro.MicroInterpreter(operator_file(kind, *grids, version=1))
    interpreter.run(ALL[None].astype(np.int8))
    return interpreter.output()[0].astype(int)


def pairs(rng):
    """Steps of what is read and of what is made, whose ratio is often one of ties."""
    for _ in range(60):
        step = np.float32(np.exp(rng.uniform(-6, -1)))
        yield step, np.float32(step * np.exp(rng.uniform(-1, 0.5)))
        yield step, np.float32(step * rng.integers(1, 9) / rng.integers(1, 9))
    # `x (1 / step)` and `x / step` lie on two sides of a tie; and what calibrations found.
    yield np.float32(0.011984438), np.float32(0.011323879)
    yield np.float32(0.011195871), np.float32(0.011195871)


@pytest.mark.parametrize("bits", [8, 5, 3])
@pytest.mark.parametrize(
    ("function", "runtime"), [("elu", "xnnpack"), ("gelu", "xnnpack"), ("elu", "tflm")]
)
def test_levels_are_those_of_the_runtimes_own_table(function, runtime, bits, rng):
    if runtime == "tflm" and not micro.is_installed():
        pytest.skip("tflite-micro is not installed")
    run = {"xnnpack": in_xnnpack, "tflm": in_tflm}[runtime]
    layer = QuantizedLookup(keras.layers.Activation(function), bits)
    layer.build((None, 4))
    quantizer, zero = layer.activation_quantizer, layer.operator_zero_point
    assert layer.operator == function.upper()
    uncertain = 0
    for step_in, step in pairs(rng):
        quantizer.set_step(step)
        if not layer.is_certain(ops.convert_to_tensor(step_in)):
            uncertain += 1
            continue
        table = ops.convert_to_numpy(layer.table(ops.convert_to_tensor(step_in), runtime))
        want = run(function.upper(), [((1, 256), step_in, 0)], ((1, 256), step, zero)) - zero
        np.testing.assert_array_equal(table[:256], np.minimum(want, quantizer.high))
    # GELU is 2 in all runtimes where it is x, but that is not looked into.
    assert uncertain <= (60 if function == "gelu" else 2)


# Steps for which glibc's last bits make another level than rounding tanh(x) once does.
@pytest.mark.parametrize("step", [0.02705532, 0.009837608, 0.015870309])
def test_what_last_bits_decide_is_a_table_of_the_file(step, tmp_path):
    inputs = keras.Input((4,))
    x, given = Quantize(step=step, name="in")(inputs)
    y, _ = QuantizedTanh(name="t")(x, given)
    model = keras.Model(inputs, y)
    assert not model.get_layer("t").is_certain(np.float32(step))
    operators, report = parity(model, tmp_path / "x.tflite", (ALL * step).reshape(-1, 4))
    assert_exact(report)
    assert "GATHER" in operators and "TANH" not in operators
