"""Activations and products of stored tensors: every pair of integers, against the runtime."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.layers import QuantizedMultiply, QuantizedSigmoid, QuantizedSoftmax
from tests.deployment.files import operator_file, run_operator

ops = keras.ops
array = ops.convert_to_numpy
ALL = np.arange(-128, 128)
GRIDS = st.tuples(st.integers(2, 8), st.booleans())


def grid(bits, signed):
    """The lowest and the highest level, and the integer that stands for 0."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return low, high, 127 - high


def layer_of(kind, step=None, **options):
    layer = kind(**options)
    layer.build((None, 4))
    if step is not None:
        layer.activation_quantizer.set_step(step)
    return layer


def tensor(levels, step):
    return ops.convert_to_tensor((levels * np.float32(step)).astype("float32"))


def levels_of(layer, *inputs):
    """The levels that a layer makes of `(levels, step)` pairs."""
    steps = [np.float32(step) for _, step in inputs]
    y, step = layer(*(tensor(*pair) for pair in inputs), *map(ops.convert_to_tensor, steps))
    return np.rint(array(y) / array(step)).astype(int)


def sigmoid_levels(step, zero):
    content = operator_file("LOGISTIC", [((1, 256), step, zero)], ((1, 256), 1 / 256, -128))
    return run_operator(content, ALL[None])[0] + 128


@pytest.mark.parametrize("zero", [-128, 0, 112, 126])
def test_sigmoid(zero, rng):
    layer = layer_of(QuantizedSigmoid)
    for step in np.float32(np.exp(rng.uniform(-9, 3, 60))):
        inside = ALL - zero >= -128  # what a grid has
        got = levels_of(layer, ((ALL - zero)[None], step))[0]
        np.testing.assert_array_equal(got[inside], sigmoid_levels(step, zero)[inside])


@pytest.mark.slow
def test_sigmoid_where_it_rises():
    """Steps for which a level falls on a rounding tie of the table, from either side."""
    layer = layer_of(QuantizedSigmoid)
    for level in range(0, 255, 4):
        share = (level + 0.5) / 256
        edge = np.float32(np.log(share / (1 - share)))
        divisor = 1 if edge > 0 else -1
        for bound in (edge, 9, -9):
            step = np.nextafter(edge, np.float32(bound)) / np.float32(divisor * 37)
            if step > 0:
                got = levels_of(layer, (ALL[None], step))[0]
                np.testing.assert_array_equal(got, sigmoid_levels(step, 0))


def softmax_levels(levels, step, zero):
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    shape = levels.shape
    content = operator_file("SOFTMAX", [(shape, step, zero)], (shape, 1 / 256, -128), options)
    return run_operator(content, levels + zero) + 128


@pytest.mark.parametrize("shape", [(4000, 2), (400, 10), (64, 1000), (5, 9, 8, 21)])
@pytest.mark.parametrize("bits", [8, 4])
def test_softmax(shape, bits, rng):
    """Sums whose last bit depends on the order of addition, from flat rows to sharp ones."""
    layer = layer_of(QuantizedSoftmax)
    for signed in (True, False):
        low, high, zero = grid(bits, signed)
        for step in np.float32(np.exp(rng.uniform(-8, 1, 6))):
            levels = rng.integers(low, high + 1, shape)
            expected = softmax_levels(levels, step, zero)
            np.testing.assert_array_equal(levels_of(layer, (levels, step)), expected)


def test_softmax_of_equal_values_rounds_up():
    """Probabilities of 1/2, 1/3 ..., and 2.5 levels, which lie between two."""
    layer = layer_of(QuantizedSoftmax)
    for count in [1, 2, 3, 5, 512, *(int(256 / half) for half in (0.5, 2.5))]:
        levels = np.full((1, count), 7)
        expected = softmax_levels(levels, 0.1, 0)
        np.testing.assert_array_equal(levels_of(layer, (levels, 0.1)), expected)
    assert (levels_of(layer, (np.full((1, 512), 7), 0.1)) == 1).all()


FUSED = {"linear": 0, "relu": 1, "relu6": 3}
SHAPES = {
    "equal": ((2, 3, 5, 7), (2, 3, 5, 7)),
    "gate": ((2, 3, 5, 7), (2, 1, 1, 7)),
    "gate first": ((2, 1, 1, 7), (2, 3, 5, 7)),
    "mask": ((2, 3, 5, 7), (2, 3, 5, 1)),
    "vectors": ((2, 70), (2, 70)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@settings(max_examples=25)
@given(
    grids=st.tuples(GRIDS, GRIDS, GRIDS),
    steps=st.tuples(st.floats(0.003, 1), st.floats(0.003, 1), st.floats(1, 150)),
    activation=st.sampled_from(sorted(FUSED)),
    seed=st.integers(0, 999),
)
def test_product(shapes, grids, steps, activation, seed):
    rng = np.random.default_rng(seed)
    bits, signed = grids[2]
    signed = signed and activation == "linear"
    step = np.float32(steps[0] * steps[1] * steps[2])
    limits = [grid(*given) for given in grids[:2]]
    levels = [
        rng.integers(low, high + 1, s) for s, (low, high, _) in zip(shapes, limits, strict=True)
    ]
    low, _, zero = grid(bits, signed)
    options = schema.MulOptionsT()
    options.fusedActivationFunction = FUSED[activation]
    zeros = [limit[2] for limit in limits]
    inputs = list(zip(shapes, steps[:2], zeros, strict=True))
    content = operator_file("MUL", inputs, (np.broadcast_shapes(*shapes), step, zero), options)
    stored = [n + zero_in for n, zero_in in zip(levels, zeros, strict=True)]
    want = np.maximum(run_operator(content, *stored) - zero, low)
    layer = layer_of(QuantizedMultiply, step, bits=bits, signed=signed, activation=activation)
    np.testing.assert_array_equal(levels_of(layer, *zip(levels, steps[:2], strict=True)), want)


def test_product_of_all_pairs():
    a, b = np.meshgrid(ALL, ALL)
    shape = (1, 256, 256, 1)
    options = schema.MulOptionsT()
    inputs = [(shape, 0.037, 0), (shape, 1 / 256, -128)]
    content = operator_file("MUL", inputs, (shape, 0.031, 0), options)
    want = run_operator(content, a.reshape(shape), b.reshape(shape))
    layer = layer_of(QuantizedMultiply, 0.031)
    got = levels_of(layer, (a.reshape(shape), 0.037), (b.reshape(shape) + 128, 1 / 256))
    np.testing.assert_array_equal(got, want)
