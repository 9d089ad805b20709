"""Types in which a `.tflite` file stores kernels: from INT8 to INT4."""

from ai_edge_litert import schema_py_generated as schema

from repq_tf.deployment.flatbuffer import WEIGHTED, dump, load, operator_name, tensor_data
from repq_tf.deployment.int4 import pack

# The operators' versions from which on they take INT4 kernels.
_INT4_VERSIONS = {"CONV_2D": 7, "FULLY_CONNECTED": 7}


def store_int4(content, names):
    """Stores the kernels behind the tensors of some names in 4 bits.

    Args:
        content: the bytes of a file.
        names: of the tensors that the operators make, directly or through a clamp.
    """
    model = load(content)
    for operator in _weighted(model, names):
        kernel = model.subgraphs[0].tensors[operator.inputs[1]]
        buffer = schema.BufferT()
        buffer.data = pack(tensor_data(model, kernel))
        model.buffers[kernel.buffer] = buffer
        kernel.type = schema.TensorType.INT4
        code = model.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, _INT4_VERSIONS[operator_name(model, operator)])
    return dump(model)


def has_int4(model):
    """Whether a parsed file has a kernel of 4 bits."""
    tensors = model.subgraphs[0].tensors
    return any(tensor.type == schema.TensorType.INT4 for tensor in tensors)


def _weighted(model, names):
    """The convolutions and dense operators behind the tensors of some names."""
    graph = model.subgraphs[0]
    indices = {tensor.name.decode(): index for index, tensor in enumerate(graph.tensors)}
    producer = {int(o): operator for operator in graph.operators for o in operator.outputs}
    for name in names:
        operator = producer[indices[name]]
        while operator_name(model, operator) not in WEIGHTED:
            operator = producer[int(operator.inputs[0])]
        yield operator
