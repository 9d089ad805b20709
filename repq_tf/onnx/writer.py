"""A program as an ONNX model."""

from collections.abc import Mapping
from typing import Any

from repq_tf.onnx.builder import Builder
from repq_tf.onnx.operators import OPERATORS
from repq_tf.tflite.program import Program
from repq_tf.version import __version__

# The newest that ONNX Runtime and OpenVINO both take, and the format that came with it.
OPSET, _FORMAT = 21, 10


def write(program: Program, name: str, lowest: Mapping[str, int]) -> Any:
    """The `onnx.ModelProto` of a program, which has been checked.

    Args:
        program: a `Program` of int8 features.
        name: of the graph.
        lowest: the least level that each input's grid has.

    Raises:
        ValueError: ONNX lacks an operator for whole numbers; it is named.
    """
    import onnx

    builder, kind = Builder(program), onnx.TensorProto.FLOAT
    inputs, outputs = (
        [
            onnx.helper.make_tensor_value_info(key, kind, ["batch", *tensor.shape[1:]])
            for key, tensor in side.items()
        ]
        for side in (program.inputs, program.outputs)
    )
    for key, tensor in program.inputs.items():
        builder.take(key, tensor, lowest[key])
    for operation in program.operations:
        if builder.is_done(operation):
            continue
        if operation.kind not in OPERATORS:
            raise ValueError(
                f"layer {operation.outputs[0].name!r}: ONNX lacks operator {operation.kind} "
                "for whole numbers"
            )
        OPERATORS[operation.kind](builder, operation)
    for key, tensor in program.outputs.items():
        builder.give(key, tensor)
    constants = list(builder.constants.values())
    graph = onnx.helper.make_graph(builder.nodes, name, inputs, outputs, constants)
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_FORMAT,
        producer_name="repq_tf",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model
