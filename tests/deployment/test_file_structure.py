"""What an integer file is made of: one operator for each block, and nothing between them."""

import collections

import pytest

import repq_tf
from repq_tf import layers as blocks
from tests.deployment.files import OPERATORS, read
from tests.quantization.networks import images, layers, network, quantize
from tests.zoo import BLOCKS

SHAPE = (12, 12, 3)
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
VALID = 1
ACTIVATIONS = {"linear": 0, "relu": 1}


class Operator:
    """An operator of a file: its name, options and tensors, by their indices."""

    def __init__(self, model, operator):
        code = model.operatorCodes[operator.opcodeIndex]
        self.name = OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        self.options = {} if operator.builtinOptions is None else vars(operator.builtinOptions)
        self.inputs = [int(i) for i in operator.inputs]
        (self.output,) = (int(i) for i in operator.outputs)
        self.tensors = model.subgraphs[0].tensors

    def shape(self, index):
        return tuple(int(n) for n in self.tensors[index].shape)

    def scale(self, index):
        return self.tensors[index].quantization.scale.tolist()

    def outline(self):
        """Everything but the numbers."""
        options = {key: str(value) for key, value in self.options.items()}
        return self.name, options, [self.shape(i) for i in (*self.inputs, self.output)]


def export(model, path):
    """The operators of a model's file, in order, and how many of each there are."""
    repq_tf.export_tflite(model, path)
    file = read(path)
    (graph,) = file.subgraphs
    operators = [Operator(file, operator) for operator in graph.operators]
    return operators, collections.Counter(operator.name for operator in operators)


def assert_no_padding_of_the_runtime_is_written_out(operators):
    """A PAD stands only where TFLite's SAME would pad differently, before one VALID window.

    XNNPACK folds a PAD of zeros into the one convolution that reads it.
    """
    for pad in operators:
        if pad.name != "PAD":
            continue
        (reader,) = (operator for operator in operators if pad.output in operator.inputs)
        assert reader.options["padding"] == VALID
        if reader.name == "MAX_POOL_2D":
            window = reader.options["filterHeight"], reader.options["filterWidth"]
        else:
            assert reader.name in ("CONV_2D", "DEPTHWISE_CONV_2D")
            window = reader.shape(reader.inputs[1])[1:3]
        strides = reader.options["strideH"], reader.options["strideW"]
        before, after = (reader.shape(k)[1:3] for k in (pad.inputs[0], reader.output))
        assert after == tuple(-(-n // s) for n, s in zip(before, strides, strict=True))
        same = [
            max((-(-n // s) - 1) * s + size - n, 0)
            for n, s, size in zip(before, strides, window, strict=True)
        ]
        # All of ours pad by half a window on both sides.
        assert same != [2 * (size // 2) for size in window]


def every_block(x):
    """Each block after another, every second one in a sum; and the ways to pad a stride."""
    x = blocks.ConvBNBlock(4, activation="relu", name="stem")(x)
    for index, (name, options) in enumerate(BLOCKS.items()):
        block = getattr(blocks, name)
        if index % 2:
            x = block(4, activation="relu", name=name, **options)(x)
            continue
        y = layers.Add(name=f"{name}_sum")([x, block(4, name=name, **options)(x)])
        x = layers.ReLU(name=f"{name}_relu")(y)
    x = blocks.RepVGGBlock(8, groups=2, activation="relu", name="grouped")(x)
    for name, options in STRIDED.items():
        x = blocks.MobileOneBlock(8, activation="relu", name=name, **options)(x)
    return layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


STRIDED = {
    "even_explicit": {"strides": 2, "padding": 1, "groups": 8},  # 12 to 6, not SAME
    "even_same": {"strides": 2, "padding": "same"},  # 6 to 3
    "odd_explicit": {"strides": 2, "padding": 1},  # 3 to 2, SAME
}


@pytest.fixture(scope="module")
def float_model():
    return network(every_block, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_one_operator_for_each_block_and_nothing_between(float_model, bits, tmp_path):
    qat = quantize(float_model, bits=bits, calibration_data=images(2, SHAPE))
    operators, counts = export(qat, tmp_path / "x.tflite")
    sums = -(-len(BLOCKS) // 2)
    clamps = counts.pop("QUANTIZE", 0)
    assert counts == {
        "CONV_2D": 1 + len(BLOCKS) + 3,
        "DEPTHWISE_CONV_2D": 1,
        "ADD": sums,
        "PAD": 1,
        "MEAN": 1,
        "FULLY_CONNECTED": 1,
    }
    assert_no_padding_of_the_runtime_is_written_out(operators)
    # Below 8 bits the signed tensors, those without a ReLU, have a lower clamp.
    assert clamps == (0 if bits == 8 else sums)
    for operator in operators:
        if operator.name == "QUANTIZE":
            assert operator.scale(operator.inputs[0]) == operator.scale(operator.output)
    blocks_of = [layer for layer in qat.layers if isinstance(layer, blocks.ReparamConv)]
    weighted = [operator for operator in operators if operator.name in CONVOLUTIONS]
    expected = [ACTIVATIONS[block.activation.__name__] for block in blocks_of]
    fused = [operator.options["fusedActivationFunction"] for operator in weighted]
    assert fused == expected
    added = [operator for operator in operators if operator.name == "ADD"]
    assert {operator.options["fusedActivationFunction"] for operator in added} == {1}


@pytest.mark.slow(10)
def test_ac_resnet18_has_exactly_the_operators_of_resnet18(tmp_path):
    outlines = {}
    for name in ("ac_resnet18", "resnet18"):
        model = repq_tf.models.build(name, 10, (72, 72, 3), width=0.125)
        qat = quantize(model, calibration_data=images(1, (72, 72, 3)))
        operators, counts = export(qat, tmp_path / "x.tflite")
        outlines[name] = [operator.outline() for operator in operators]
        assert counts == {
            "CONV_2D": 20,
            "ADD": 8,
            "PAD": 3,
            "MAX_POOL_2D": 1,
            "MEAN": 1,
            "FULLY_CONNECTED": 1,
        }
        assert_no_padding_of_the_runtime_is_written_out(operators)
    assert outlines["ac_resnet18"] == outlines["resnet18"]
