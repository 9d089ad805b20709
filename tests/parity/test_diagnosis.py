"""Good files, each damaged in one way: the report names the layer and the cause."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import repq_tf
from tests.deployment.files import Convolution, read, write
from tests.quantization.networks import images, layers, network, quantize

X = images(64)


def body(x):
    """A low-bit signed tensor, a concatenation, a sum and a mean."""
    x = layers.Conv2D(4, 3, activation="relu", name="stem")(x)
    y = layers.Conv2D(4, 3, padding="same", name="signed")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    y = layers.Conv2D(3, 1, name="one")(x)
    z = layers.Conv2D(4, 3, padding="same", activation="relu6", name="six")(x)
    x = layers.Concatenate(name="cat")([y, z])
    x = layers.Conv2D(6, 1, activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return layers.Dense(5, name="logits")(x)


@pytest.fixture(scope="module")
def qat():
    rules = [(name, {"activation_bits": 4}) for name in ("signed", "wide")]
    return quantize(network(body), rules=[*rules, ("wide", {"weight_bits": 4})])


@pytest.fixture(scope="module")
def good(qat, tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.tflite"
    repq_tf.export_tflite(qat, path)
    return path


class Damage:
    """A parsed file, with what the damages below need."""

    def __init__(self, path):
        self.model = read(path)
        self.graph = self.model.subgraphs[0]
        self.tensors = self.graph.tensors
        self.index = {t.name.decode(): k for k, t in enumerate(self.tensors)}

    def producer(self, name):
        index = self.index[name]
        return next(op for op in self.graph.operators if index in op.outputs)

    def opcode(self, builtin, version=1):
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = builtin
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def add_tensor(self, name, like, kind=schema.TensorType.FLOAT32, data=None):
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, kind
        tensor.shape, tensor.shapeSignature = like.shape, like.shapeSignature
        self.tensors.append(tensor)
        if data is not None:
            self.set_constant(len(self.tensors) - 1, data)
        return len(self.tensors) - 1

    def set_constant(self, index, data):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.tensors[index].buffer = len(self.model.buffers) - 1

    def convert(self, kind, source, target):
        operator = schema.OperatorT()
        operator.opcodeIndex = self.opcode(getattr(schema.BuiltinOperator, kind.upper()))
        operator.inputs, operator.outputs = np.int32([source]), np.int32([target])
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
        operator.builtinOptions = getattr(schema, f"{kind}OptionsT")()
        return operator


def bias_off_grid(damage):
    found = Convolution(damage.model, "six")
    found.set_data(found.bias, found.data(found.bias) + 2000)


def bias_of_another_scale(damage):
    bias = Convolution(damage.model, "six").bias
    bias.quantization.scale = bias.quantization.scale * np.float32(1.5)
    wide = Convolution(damage.model, "six")
    values = wide.data(wide.bias)
    wide.set_data(wide.bias, values * 3 + 2500)


def other_kernel(damage):
    found = Convolution(damage.model, "signed")
    values = found.data(found.kernel).copy()
    values[0, 1, 1] = -values[0, 1, 1] + 1
    found.set_data(found.kernel, values)


def other_kernel_scale(damage):
    kernel = Convolution(damage.model, "logits").kernel
    kernel.quantization.scale = kernel.quantization.scale * np.float32(1.2)


def scale_of(name):
    def change(damage):
        have = damage.tensors[damage.index[name]].quantization
        have.scale = have.scale * np.float32(1.1)

    return change


def zero_point_of_the_input(damage):
    have = damage.tensors[damage.index["image"]].quantization
    have.zeroPoint = have.zeroPoint + 3


def missing_lower_clamp(damage):
    """Without the shift that lets the convolution saturate at level -8."""
    shifted = damage.tensors[int(damage.producer("signed").inputs[0])].quantization
    shifted.zeroPoint = damage.tensors[damage.index["signed"]].quantization.zeroPoint


def missing_activation(damage):
    operator = damage.producer("wide")
    options = operator.builtinOptions
    assert options.fusedActivationFunction == schema.ActivationFunctionType.RELU
    options.fusedActivationFunction = schema.ActivationFunctionType.NONE


def float_operator(damage):
    """The last layer in floating point, its weights not those of the model's grid."""
    found = Convolution(damage.model, "logits")
    scale = found.kernel.quantization.scale.reshape(-1, 1)
    kernel = (found.data(found.kernel) * scale * np.float32(1.05)).astype("float32")
    bias = (found.data(found.bias) * found.bias.quantization.scale).astype("float32")
    operator, like = found.operator, damage.tensors
    source = damage.add_tensor(b"float_mean", like[int(operator.inputs[0])])
    weights = damage.add_tensor(b"float_kernel", found.kernel, data=kernel)
    offset = damage.add_tensor(b"float_bias", found.bias, data=bias)
    target = damage.add_tensor(b"float_logits", like[int(operator.outputs[0])])
    position = damage.graph.operators.index(operator)
    before = damage.convert("Dequantize", int(operator.inputs[0]), source)
    after = damage.convert("Quantize", target, int(operator.outputs[0]))
    operator.inputs, operator.outputs = np.int32([source, weights, offset]), np.int32([target])
    damage.graph.operators.insert(position, before)
    damage.graph.operators.append(after)


def no_fast_kernel(damage):
    """A kernel that an operator makes: XNNPACK takes constants."""
    found = Convolution(damage.model, "stem")
    sizes = damage.add_tensor(b"sizes", found.bias, schema.TensorType.INT32)
    damage.tensors[sizes].shape = [4]
    damage.set_constant(sizes, np.int32(found.kernel.shape))
    kernel = damage.add_tensor(b"made", found.kernel, found.kernel.type)
    damage.tensors[kernel].quantization = found.kernel.quantization
    reshape = damage.convert("Reshape", int(found.operator.inputs[1]), kernel)
    reshape.inputs = np.int32([found.operator.inputs[1], sizes])
    found.operator.inputs = np.int32(
        [found.operator.inputs[0], kernel, *found.operator.inputs[2:]]
    )
    damage.graph.operators.insert(0, reshape)


DAMAGES = {
    "bias off its grid": ("six", "bias", bias_off_grid),
    "bias of another scale": ("six", "bias", bias_of_another_scale),
    "other kernel": ("signed", "kernel", other_kernel),
    "other scale of a kernel": ("logits", "kernel", other_kernel_scale),
    "other scale of a sum": ("add", "scale", scale_of("add")),
    "other scale of the input": ("stem", "scale", scale_of("image")),
    "zero point of the input": ("stem", "scale", zero_point_of_the_input),
    "missing lower clamp": ("signed", "clamp", missing_lower_clamp),
    "missing activation": ("wide", "clamp", missing_activation),
    "float operator": ("logits", "float", float_operator),
    "no fast kernel": ("stem", "kernels", no_fast_kernel),
}
WORDS = {
    "bias": "bias off its grid",
    "kernel": "kernel",
    "scale": "tensor ",
    "unequal scales": "unequal scales at CONCATENATION",
    "clamp": "missing clamp",
    "float": "float fallback",
    "kernels": "run by other kernels than XNNPACK's",
}


@pytest.mark.slow
def test_a_file_that_the_runtime_refuses(qat, good, tmp_path):
    """XNNPACK's concatenation needs equal scales."""
    damaged = Damage(good)
    have = damaged.tensors[int(damaged.producer("wide").inputs[0])].quantization
    have.scale = have.scale * np.float32(1.3)
    write(damaged.model, tmp_path / "bad.tflite")
    with pytest.raises(ValueError, match="refused by the runtime: unequal scales at CONCAT"):
        repq_tf.check_parity(qat, tmp_path / "bad.tflite", X)


def test_the_good_file_has_no_cause(qat, good):
    report = repq_tf.check_parity(qat, good, X)
    assert report.holds and report.causes == ()


def test_a_file_of_before_the_training_is_told_from_a_damaged_one(qat, good):
    trained = keras.models.clone_model(qat)
    trained.set_weights(qat.get_weights())
    trained.compile(keras.optimizers.SGD(0.1), "mse")
    trained.fit(X, np.ones((len(X), 5)), verbose=0)
    first, *more = repq_tf.check_parity(trained, good, X).causes
    assert first.kind == "other model" and "export it again" in str(first)
    assert {"scale", "kernel"} <= {cause.kind for cause in more}


@pytest.mark.parametrize(("layer", "kind", "damage"), DAMAGES.values(), ids=DAMAGES.keys())
def test_the_cause_is_named(qat, good, layer, kind, damage, tmp_path):
    damaged = Damage(good)
    damage(damaged)
    write(damaged.model, tmp_path / "bad.tflite")
    report = repq_tf.check_parity(qat, tmp_path / "bad.tflite", X)
    assert not report.holds
    first, *more = report.causes
    assert (first.layer, first.kind) == (layer, kind), str(report)
    assert WORDS[kind] in first.text, first.text
    assert f"likely cause: layer {layer!r}: " in str(report)
    if kind == "kernels":  # single roundings, which others make large
        differing = [row.name for row in report.layers if row.different]
        assert differing[0] == layer and report.first_divergent in differing
    else:
        assert report.first_divergent == layer
        # Nothing is said of what was not damaged.
        assert {cause.kind for cause in more} <= {kind}, report.causes
