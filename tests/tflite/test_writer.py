"""Programs written by hand: what the runtime computes of their files, and how these lie."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from repq_tf.tflite import reading
from repq_tf.tflite.program import Grid, Program, Tensor, whole
from repq_tf.tflite.writer import write

GRID = Grid(np.float32(0.5), -3)


def features(program, name, shape=(None, 2, 3, 4), kind="int8", grid=GRID):
    return Tensor(program.name(name), kind, shape, grid)


def padded(kind="int8", zero=-3):
    """Two PADs with equal paddings, then the largest of each channel."""
    program, grid = Program(), Grid(np.float32(0.5), zero)
    x = program.inputs["image"] = features(program, "image", kind=kind, grid=grid)
    sides, axes = whole(((0, 0), (1, 0), (0, 2), (0, 0))), whole((1, 2))
    for shape in ((None, 3, 5, 4), (None, 4, 7, 4)):
        y = features(program, "pad", shape, kind, grid)
        x = program.add("PAD", (x, program.constant("sides", sides)), y)
    y = features(program, "largest", (None, 4), kind, grid)
    axes = program.constant("axes", axes)
    program.outputs["top"] = program.add("REDUCE_MAX", (x, axes), y, keepDims=False)
    return program


@pytest.mark.parametrize(("kind", "zero"), [("int8", -3), ("int16", 0)])
def test_the_runtime_runs_what_is_written(kind, zero):
    interpreter = Interpreter(model_content=write(padded(kind, zero)))
    run = interpreter.get_signature_runner("serving_default")
    rng = np.random.default_rng(0)
    x = rng.integers(-100, 100, (1, 2, 3, 4)).astype(kind)
    expected = np.maximum(x.max(axis=(1, 2)), zero)  # zeros stand beside the image
    np.testing.assert_array_equal(run(image=x)["top"], expected)


def test_names_are_never_equal_and_plain_constants_are_shared(tmp_path):
    path = tmp_path / "x.tflite"
    path.write_bytes(write(padded()))
    _, model = reading.read(path)
    names = [tensor.name.decode() for tensor in model.subgraphs[0].tensors]
    assert names == ["image", "sides", "pad", "pad_1", "axes", "largest"]
    assert [signature.name for signature in model.signatureDefs[0].inputs] == [b"image"]
    shapes = [reading.shape(tensor) for tensor in model.subgraphs[0].tensors]
    assert shapes[0] == (None, 2, 3, 4) and shapes[1] == (4, 2)


def test_constants_are_aligned_and_equal_ones_stored_once():
    program = Program()
    x = program.inputs["x"] = features(program, "x", (None, 4))
    values = np.arange(37 * 4, dtype=np.int8).reshape(37, 4)
    for name in ("a", "b"):  # equal numbers on unequal grids
        scale = np.full(37, 0.1 if name == "a" else 0.2, np.float32)
        kernel = program.constant(f"{name}/kernel", values, Grid(scale))
        bias = program.constant(f"{name}/bias", np.arange(37, dtype=np.int32), Grid(scale / 2))
        y = features(program, name, (None, 37))
        options = {"fusedActivationFunction": "NONE", "keepNumDims": False}
        program.outputs[name] = program.add("FULLY_CONNECTED", (x, kernel, bias), y, **options)
    content = write(program)
    for constant in (values, np.arange(37, dtype=np.int32)):
        assert content.count(constant.tobytes()) == 1
        assert content.index(constant.tobytes()) % 16 == 0
    model = reading.load(content)
    scales = {t.name: t.quantization.scale[0] for t in model.subgraphs[0].tensors}
    assert scales[b"a/kernel"] == np.float32(0.1) and scales[b"b/kernel"] == np.float32(0.2)


def test_four_bit_kernels_need_a_later_version():
    program = Program()
    x = program.inputs["x"] = features(program, "x", (None, 3), grid=Grid(np.float32(1)))
    values = np.array([[-8, 7, 1]], np.int8)
    kernel = Tensor("kernel", "int4", values.shape, Grid(np.ones(1, np.float32)), values)
    bias = program.constant("bias", whole([5]), Grid(np.ones(1, np.float32)))
    y = features(program, "y", (None, 1), grid=Grid(np.float32(1)))
    options = {"fusedActivationFunction": "NONE", "keepNumDims": False}
    program.outputs["y"] = program.add("FULLY_CONNECTED", (x, kernel, bias), y, **options)
    content = write(program)
    assert reading.has_int4(reading.load(content))
    run = Interpreter(model_content=content).get_signature_runner()
    assert run(x=np.array([[1, 2, 3]], np.int8))["y"].item() == -8 + 14 + 3 + 5


@pytest.mark.parametrize(("inputs", "version"), [(4, 3), (2, 6)])
def test_older_runtimes_refuse_grouped_convolutions(inputs, version):
    """As TensorFlow's own converter has them; an older runtime computes something else."""
    program = Program()
    x = program.inputs["x"] = features(program, "x", (None, 2, 2, 4))
    kernel = np.ones((4, 1, 1, inputs), np.int8)
    constants = program.constant("kernel", kernel, GRID), program.constant("b", whole([0] * 4))
    y = features(program, "y", (None, 2, 2, 4))
    options = {"padding": "VALID", "strideH": 1, "strideW": 1}
    program.outputs["y"] = program.add("CONV_2D", (x, *constants), y, **options)
    (code,) = reading.load(write(program)).operatorCodes
    assert code.version == version


@pytest.mark.parametrize(("rank", "version"), [(2, 4), (3, 5)])
def test_older_runtimes_refuse_dense_layers_that_keep_the_rank(rank, version):
    program = Program()
    shape = (None, 3, 4)[: rank - 1] + (4,)
    x = program.inputs["x"] = features(program, "x", shape)
    constants = (
        program.constant("kernel", np.ones((5, 4), np.int8), GRID),
        program.constant("b", whole([0] * 5)),
    )
    y = features(program, "y", (*shape[:-1], 5))
    options = {"keepNumDims": rank > 2}
    program.outputs["y"] = program.add("FULLY_CONNECTED", (x, *constants), y, **options)
    (code,) = reading.load(write(program)).operatorCodes
    assert code.version == version


def test_types_without_a_kernel_and_unknown_options_are_refused():
    program = Program()
    x = program.inputs["x"] = features(program, "x", kind="int16")
    y = features(program, "gate", kind="int16")
    program.outputs["y"] = program.add("LOGISTIC", (x,), y)
    with pytest.raises(ValueError, match="no INT16 kernel of operator LOGISTIC.*'gate'"):
        write(program)
    program = Program()
    x = program.inputs["x"] = features(program, "x")
    program.outputs["y"] = program.add("QUANTIZE", (x,), features(program, "y"), sharp=True)
    with pytest.raises(AttributeError, match="QUANTIZE has no option 'sharp'"):
        write(program)
