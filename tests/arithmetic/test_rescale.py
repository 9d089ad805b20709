"""The runtime's fixed-point kernels, against the interpreter running single operators."""

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from repq_tf.arithmetic import rescale, sums

ops = keras.ops
LOW, HIGH = -(2**15), 2**15 - 1
STEPS = st.floats(-9, 0).map(lambda power: float(np.float32(10.0**power)))


class File:
    """A `.tflite` file of one operator with int16 activations, made with the schema."""

    def __init__(self, operator, options, **fields):
        self.tensors, self.buffers = [], [schema.BufferT()]
        self.operator = schema.OperatorT()
        self.operator.opcodeIndex = 0
        self.operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        self.operator.builtinOptions = getattr(schema, f"{options}T")()
        for name, value in fields.items():
            setattr(self.operator.builtinOptions, name, value)
        self.code = schema.OperatorCodeT()
        self.code.builtinCode = getattr(schema.BuiltinOperator, operator)
        self.code.deprecatedBuiltinCode, self.code.version = self.code.builtinCode, 1

    def tensor(self, shape, kind="INT16", scale=None, data=None, axis=0):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = f"t{len(self.tensors)}", list(shape), 0
        tensor.type = getattr(schema.TensorType, kind)
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.float32(scale))
            tensor.quantization.zeroPoint = np.zeros(np.size(scale), np.int64)
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def run(self, ends, inputs, output, values):
        """The output, for `values` of the inputs `ends`."""
        self.operator.inputs, self.operator.outputs = inputs, [output]
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators = self.tensors, [self.operator]
        graph.inputs, graph.outputs = ends, [output]
        model.version, model.subgraphs, model.operatorCodes = 3, [graph], [self.code]
        model.buffers = self.buffers
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
        interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), values, strict=True):
            interpreter.set_tensor(detail["index"], value.astype("int16"))
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def tensor(values, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(values, dtype))


def levels(result):
    return np.clip(ops.convert_to_numpy(result), LOW, HIGH).astype("int16")


@settings(max_examples=15)
@given(
    steps=st.tuples(STEPS, STEPS),
    bits=st.integers(4, 16),
    channels=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_dense_sums_are_rounded_twice(steps, bits, channels, seed):
    """A FULLY_CONNECTED of one 1 for each channel and INT32 biases: the sums are given."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, channels))
    scale = np.float32(steps[1] * rng.uniform(0.5, 1, channels))
    bias = rng.integers(-(2**20), 2**20, channels).astype("int32")
    step = np.float32(steps[0] * np.max(np.abs(127.0 * x + bias) * scale) / HIGH * 1.1)
    file = File("FULLY_CONNECTED", "FullyConnectedOptions")
    file.operator.builtinOptions.quantizedBiasType = schema.TensorType.INT32
    kernel = (127 * np.eye(channels)).astype("int8")
    ends = [file.tensor(x.shape, scale=steps[0])]
    weights = [
        file.tensor(kernel.shape, "INT8", scale, kernel),
        file.tensor(bias.shape, "INT32", scale * np.float32(steps[0]), bias),
    ]
    got = file.run(ends, ends + weights, file.tensor(x.shape, scale=step), [x])
    scale = np.float64(np.float32(steps[0])) * np.float64(scale)
    sums = tensor(127.0 * x + bias, "float64")
    want = rescale.rescale(sums, tensor(scale, "float64"), tensor(step), "twice")
    np.testing.assert_array_equal(levels(want), got)
    real = np.clip((127.0 * x + bias) * scale / step, LOW, HIGH)
    assert np.abs(real - got).max() < 1


def test_dense_sums_wrap_around_at_32_bits():
    """Beyond what real networks reach, and the same in the model and in the file."""
    x = np.full((1, 600), HIGH)
    kernel = np.full((2, 600), 127, "int8")
    kernel[1] = -127
    bias = np.zeros(2, "int32")
    file = File("FULLY_CONNECTED", "FullyConnectedOptions")
    file.operator.builtinOptions.quantizedBiasType = schema.TensorType.INT32
    ends = [file.tensor(x.shape, scale=1e-4)]
    weights = [
        file.tensor(kernel.shape, "INT8", [1e-3, 1e-3], kernel),
        file.tensor(bias.shape, "INT32", np.float32([1e-7, 1e-7]), bias),
    ]
    got = file.run(ends, ends + weights, file.tensor((1, 2), scale=0.1), [x])
    sums = tensor(x @ kernel.T.astype(float), "float64")
    scale = np.float64(np.float32(1e-4)) * np.float64(np.float32([1e-3, 1e-3]))
    want = rescale.rescale(sums, tensor(scale, "float64"), tensor(0.1), "twice")
    np.testing.assert_array_equal(levels(want), got)
    assert got[0, 0] < 0 < got[0, 1]


@settings(max_examples=15)
@given(steps=st.tuples(STEPS, STEPS), channels=st.integers(1, 9), seed=st.integers(0, 99))
def test_depthwise_sums_have_15_bit_multipliers(steps, channels, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(LOW, HIGH + 1, (1, 4, 5, channels))
    kernel = rng.integers(-127, 128, (1, 1, 1, channels)).astype("int8")
    scale = np.float32(steps[1] * rng.uniform(0.5, 1, channels))
    bias = rng.integers(-(2**20), 2**20, channels).astype("int64")
    sums = (x * kernel + bias).astype("float64")
    step = np.float32(steps[0] * np.max(np.abs(sums) * scale) / HIGH * 0.9)
    file = File("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", strideH=1, strideW=1)
    options = file.operator.builtinOptions
    options.depthMultiplier, options.padding = 1, schema.Padding.VALID
    options.dilationHFactor = options.dilationWFactor = 1
    ends = [file.tensor(x.shape, scale=steps[0])]
    weights = [
        file.tensor(kernel.shape, "INT8", scale, kernel, axis=3),
        file.tensor(bias.shape, "INT64", scale * np.float32(steps[0]), bias),
    ]
    got = file.run(ends, ends + weights, file.tensor(x.shape, scale=step), [x])
    scale = np.float64(np.float32(steps[0])) * np.float64(scale)
    want = rescale.rescale(
        tensor(sums, "float64"), tensor(scale, "float64"), tensor(step), "reduced"
    )
    np.testing.assert_array_equal(levels(want), got)
    assert np.abs(np.clip(sums * scale / step, LOW, HIGH) - got).max() <= 1.51


@settings(max_examples=15)
@given(
    steps=st.tuples(*[st.floats(0.01, 1).map(np.float32)] * 3),
    shapes=st.sampled_from(
        [((2, 4, 4, 16),) * 2, ((2, 4, 4, 16), (2, 1, 1, 16)), ((1, 3, 3, 5), (1, 1, 1, 5))]
    ),
    seed=st.integers(0, 99),
)
def test_sums_of_two_tensors(steps, shapes, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(LOW, HIGH + 1, shape) for shape in shapes)
    file = File("ADD", "AddOptions", potScaleInt16=False)
    ends = [file.tensor(a.shape, scale=steps[0]), file.tensor(b.shape, scale=steps[1])]
    got = file.run(ends, ends, file.tensor(a.shape, scale=steps[2]), [a, b])
    want = sums.add_wide(tensor(a), tensor(b), *map(tensor, steps))
    np.testing.assert_array_equal(levels(want), got)
    real = a * float(steps[0]) + b * float(steps[1])
    assert np.abs(np.clip(real / float(steps[2]), LOW, HIGH) - got).max() <= 0.51


@settings(max_examples=15)
@given(
    steps=st.tuples(*[st.floats(0.001, 0.1).map(np.float32)] * 2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_means(steps, size, seed):
    x = np.random.default_rng(seed).integers(LOW, HIGH + 1, (2, *size, 3))
    file = File("MEAN", "ReducerOptions", keepDims=False)
    ends = [file.tensor(x.shape, scale=steps[0])]
    axes = file.tensor((2,), "INT32", data=np.array([1, 2], "int32"))
    got = file.run(ends, [*ends, axes], file.tensor((2, 3), scale=steps[1]), [x])
    total, count = tensor(x.sum((1, 2)), "float64"), tensor(size[0] * size[1], "int32")
    want = sums.mean_wide(total, count, *map(tensor, steps))
    np.testing.assert_array_equal(levels(want), got)


@pytest.mark.parametrize("power", range(-32, 8))
def test_floor_log2(power):
    exponents = range(-32, 8)
    value = np.float64(2.0) ** power
    found = [
        int(rescale.floor_log2(tensor(x, "float64"), exponents))
        for x in (value, np.nextafter(value, np.inf), np.nextafter(2 * value, 0))
    ]
    assert found == [power] * 3
