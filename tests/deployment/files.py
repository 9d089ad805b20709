"""Running and editing `.tflite` files in the tests, without the library's own reader."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import repq_tf

OPERATORS = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
TYPES = {v: k for k, v in vars(schema.TensorType).items() if not k.startswith("_")}
TYPE_OF = {"INT8": np.int8, "INT32": np.int32}


def read(path):
    return schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)


def pack(model):
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def write(model, path):
    path.write_bytes(pack(model))


class Convolution:
    """The weighted operator that makes the tensor of a name."""

    def __init__(self, model, name):
        self.model, self.tensors = model, model.subgraphs[0].tensors
        index = [t.name.decode() for t in self.tensors].index(name)
        makes = {int(o): op for op in model.subgraphs[0].operators for o in op.outputs}
        operator = makes[index]
        while "CONV" not in self.kind(operator) and "FULLY" not in self.kind(operator):
            operator = makes[int(operator.inputs[0])]
        self.operator, self.name = operator, self.kind(operator)
        self.source, self.kernel, self.bias = (self.tensors[i] for i in operator.inputs[:3])

    def kind(self, operator):
        code = self.model.operatorCodes[operator.opcodeIndex]
        return OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def data(self, tensor):
        raw = bytes(bytearray(self.model.buffers[tensor.buffer].data))
        return np.frombuffer(raw, TYPE_OF[TYPES[tensor.type]]).reshape(tensor.shape)

    def set_data(self, tensor, values):
        raw = np.ascontiguousarray(values, TYPE_OF[TYPES[tensor.type]]).tobytes()
        self.model.buffers[tensor.buffer].data = np.frombuffer(raw, np.uint8)


def run(path, images):
    """The outputs of a file, the first operator's end to the last one's."""
    interpreter = Interpreter(str(path), num_threads=1)
    entry = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(entry["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], images)
    interpreter.invoke()
    ends = interpreter.get_output_details()
    return [interpreter.get_tensor(end["index"]) for end in ends], entry, ends


def parity(model, path, images, **ends):
    """Exports and compares; returns the operators and the report."""
    operators = repq_tf.export_tflite(model, path, **ends)
    return operators, repq_tf.check_parity(model, path, images)


def assert_exact(report):
    different = [(r.name, r.different, r.largest) for r in report.layers if r.different]
    assert not different, str(report)
    assert report.first_divergent is None
    assert (report.equal_outputs, report.largest_difference) == (1.0, 0)
    assert report.top1_agreement in (1.0, None) and report.holds


def operator_file(kind, inputs, output, options=None, version=2):
    """The bytes of a file of one int8 operator.

    Args:
        kind: such as "MUL".
        inputs: a `(shape, scale, zero point)` for each input.
        output: likewise.
        options: such as `schema.MulOptionsT()`, or None.
        version: of the operator.
    """

    def tensor(index, shape, scale, zero):
        made = schema.TensorT()
        made.name, made.shape, made.hasRank = f"t{index}".encode(), list(shape), True
        made.type, made.buffer = schema.TensorType.INT8, 0
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = np.float32([scale])
        made.quantization.zeroPoint = np.int64([zero])
        return made

    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), version
    operator.opcodeIndex = 0
    entries = np.arange(len(inputs), dtype=np.int32)
    operator.inputs, operator.outputs = entries, np.int32([len(inputs)])
    if options is not None:
        name = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        operator.builtinOptions = options
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors = [tensor(k, *given) for k, given in enumerate([*inputs, output])]
    graph.operators, graph.name = [operator], b"main"
    graph.inputs, graph.outputs = entries, operator.outputs
    model.version, model.subgraphs = 3, [graph]
    model.operatorCodes, model.buffers = [code], [schema.BufferT()]
    return pack(model)


def run_operator(content, *arrays):
    """The output integers of a file of one operator."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    for entry, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(entry["index"], array.astype(np.int8))
    interpreter.invoke()
    (end,) = interpreter.get_output_details()
    return interpreter.get_tensor(end["index"]).astype(int)
