"""Bad arguments: a ValueError that names them, whatever the function."""

import inspect
import types

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf import branches, layers, quantizers
from repq_tf.arguments import boolean, number
from repq_tf.branches import BatchNorm, Chain, Convolution, Scale, Sum
from repq_tf.files import file_path
from repq_tf.graphs import read_graph
from repq_tf.layers import ACBlock, ConvBlock, Quantize, ReparamConv
from repq_tf.quantization.placement import place
from repq_tf.quantization.rules import LayerBits, check_rules

X = np.zeros((2, 8, 8, 3), "float32")


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input(X.shape[1:], name="image")
    a = ConvBlock(4, name="a")(inputs)
    y = keras.layers.Add(name="add")([a, ConvBlock(4, name="b")(inputs)])
    return keras.Model(inputs, ConvBlock(2, name="last")(y), name="net")


@pytest.fixture(scope="module")
def quantized():
    """Quantized by hand, which is cheap."""
    inputs = keras.Input(X.shape[1:], name="image")
    y = ConvBlock(4, weight_bits=8, name="a")(*Quantize(name="image_quantize")(inputs))
    return keras.Model(inputs, Quantize(name="last")(*y)[0], name="net")


def test_numbers_and_booleans():
    assert [boolean(v, "flag") for v in (True, np.False_, 1, 0)] == [True, False, True, False]
    assert boolean(None, "flag", optional=True) is None
    for value in ("no", "False", None, 2, 0.0, [True]):
        with pytest.raises(ValueError, match="^flag must be True or False. Received: "):
            boolean(value, "flag")
    assert number(np.float32(2), "n", above=0, most=2) == 2
    for value in ("1/128", None, True, float("nan"), float("inf"), 0, 3, [1]):
        with pytest.raises(ValueError, match="^n must be a number above 0 and at most 2. Rec"):
            number(value, "n", above=0, most=2)


def constructors():
    """Each boolean argument of each class, with arguments that it needs."""
    for name in layers.__all__:
        kind = getattr(layers, name)
        if issubclass(kind, layers.QuantizedLookup):
            yield from _booleans(kind, (keras.layers.ELU(),))
        elif not issubclass(kind, layers.Slice):  # it has none
            yield from _booleans(kind, () if issubclass(kind, Quantize) else (4,))
    for kind, needed in (
        (branches.BatchNorm, (Convolution(4, 1),)),
        (branches.BatchNormStatistics, ()),
        (branches.Convolution, (4, 1)),
        (branches.Scale, (Convolution(4, 1),)),
        (quantizers.LSQ, ()),
    ):
        yield from _booleans(kind, needed)


def _booleans(kind, needed):
    arguments = {}
    for ancestor in reversed(inspect.getmro(kind)):
        if ancestor.__module__.startswith("repq_tf"):
            arguments.update(inspect.signature(ancestor.__init__).parameters)
    names = [n for n, p in arguments.items() if isinstance(p.default, bool)]
    names += [n for n in arguments if n in ("restore_batch_norm", "narrow", "bounded")]
    if "FixedGrid" in {ancestor.__name__ for ancestor in inspect.getmro(kind)}:
        names.remove("signed")  # which it decides
    for name in names:
        yield pytest.param(kind, needed, name, id=f"{kind.__name__}-{name}")


@pytest.mark.parametrize(("kind", "needed", "name"), list(constructors()))
def test_every_boolean_of_every_constructor(kind, needed, name):
    with pytest.raises(ValueError, match=f"^{name} must be True"):
        kind(*needed, **{name: "no"})


QUANTIZE = {
    "per_channel": ("no", "per_channel must be True or False. Received: 'no'"),
    "restore_batch_norm": ("no", "restore_batch_norm must be True, False or None"),
    "verbose": ("yes", "verbose must be True or False"),
    "bits": (8.0, "^bits must be a whole number"),
    "weight_bits": (8.0, "^weight_bits must be a whole number"),
    "input_step": ("1/128", "^input_step must be a number above 0. Received: '1/128'"),
    "output_step": (True, "^output_step must be a number above 0"),
    "step_gradient": ("LSQ", "^step_gradient must be one of .*'lsq'.*. Received: 'LSQ'"),
    "rules": (5, "^rules must be pairs of a name pattern and a dict. Received: 5"),
}


@pytest.mark.parametrize(("name", "value", "said"), [(n, *v) for n, v in QUANTIZE.items()])
def test_arguments_of_quantize(model, name, value, said):
    with pytest.raises(ValueError, match=said):
        repq_tf.quantize(model, calibration_data=X, **{name: value})


def test_rules(model):
    assert check_rules(None) == []
    for rules in ([5], [("a", None)], "abc", ["ab"]):
        with pytest.raises(ValueError, match="^rules must be pairs"):
            check_rules(rules)
    with pytest.raises(
        ValueError, match="rule 'a': per_channel must be True or False. .* 'no'"
    ):
        check_rules({"a": {"per_channel": "no"}})

    def bits(rules):
        return place(read_graph(model), LayerBits(), check_rules(rules), {"image": True}).sites

    for settings in ({"weight_bits": 4}, {"per_channel": False}):
        with pytest.raises(ValueError, match="'add': .* layers with weights. Received: add"):
            bits({"add": settings})
        bits({"a*": settings})  # one of them has weights
    # Layers are left in floating point with both, whether or not they have weights.
    bits({"*": {"weight_bits": None, "activation_bits": None}})


def test_what_is_quantized_is_not_quantized_again(quantized):
    for function in (repq_tf.quantize, repq_tf.quantization.check_quantizable):
        with pytest.raises(ValueError, match="^model 'net' is quantized already"):
            function(quantized)


def test_an_empty_model_has_no_layers():
    with pytest.raises(ValueError, match="must have layers. Received: none"):
        repq_tf.merge(keras.Sequential())


def test_int4_without_kernels_of_4_bits(quantized, model, tmp_path):
    said = "container='int4' is for models .* Received: a model with kernels of "
    with pytest.raises(ValueError, match=f"^{said}8 bits alone"):
        repq_tf.export_tflite(quantized, tmp_path / "model.tflite", container="int4")
    with pytest.raises(ValueError, match=f"^{said}8 bits alone"):
        repq_tf.with_container(quantized, "int4")
    with pytest.raises(ValueError, match=f"^{said}floating point alone"):
        repq_tf.with_container(model, "int4")


class Returning(ReparamConv):
    """A block whose `make_branches` returns what it is told."""

    def make_branches(self, in_channels):
        return self.result()


RESULTS = {
    "None": (lambda: None, "return the expression. Received: NoneType"),
    "a list": (lambda: [Convolution(4, 3)], r"Sum\(\[...\]\). Received: list"),
    "Conv2D": (lambda: keras.layers.Conv2D(4, 3), r"self.convolution\(...\) .* Conv2D$"),
}


@pytest.mark.parametrize(("make", "said"), RESULTS.values(), ids=RESULTS.keys())
def test_expressions_that_are_none(make, said):
    block = Returning(4, name="mine")
    block.result = make
    with pytest.raises(
        ValueError, match=f"^mine: make_branches's result must be a branch.*{said}"
    ):
        block.build((None, 8, 8, 3))


@pytest.mark.parametrize("wrap", [Sum, Chain, BatchNorm, Scale], ids=lambda w: w.__name__)
def test_keras_layers_inside_expressions(wrap):
    layer = keras.layers.Conv2D(4, 3)
    with pytest.raises(ValueError, match=r"use self.convolution\(...\).* Received: Conv2D"):
        wrap([layer] if wrap in (Sum, Chain) else layer)


def test_combiners_of_no_list():
    for wrong in (Convolution(4, 3), None, []):
        with pytest.raises(ValueError, match="^sum: branches must be a list of branches"):
            Sum(wrong)


ARGUMENTS = {
    "oabn_k": lambda: ACBlock(4, oabn_k="2"),
    "momentum": lambda: ACBlock(4, momentum="0.9"),
    "step_gradient": lambda: ACBlock(4, step_gradient=None),
    "epsilon": lambda: ACBlock(4, epsilon=None),
    "k": lambda: branches.OABN(Convolution(4, 3), k="2"),
    "custom_l2": lambda: layers.RepVGGBlock(4, custom_l2="1e-4"),
    "multiplier": lambda: layers.ECB(4, multiplier="2"),
    "internal_channels": lambda: layers.DiverseBranchBlock(4, internal_channels=1.5),
    "identity_scale": lambda: layers.CSLABlock(4, identity_scale="1"),
    "variant": lambda: layers.QARepVGGBlock(4, variant=["S4"]),
    "negative_slope": lambda: layers.QuantizedLeakyReLU("0.1"),
    "step": lambda: Quantize(step="1/128"),
    "channels": lambda: quantizers.LSQ(channels="4"),
    "filters": lambda: Convolution("4", 3),
    "kernel": lambda: branches.Fixed(np.ones((3, 3))),
    "name": lambda: repq_tf.models.build(["resnet18"]),
    "options": lambda: repq_tf.reparameterize(None, {"pattern": "acnet", "options": 5}),
    "layers": lambda: repq_tf.reparameterize(None, {"pattern": "acnet", "layers": 5}),
}


@pytest.mark.parametrize(("name", "call"), ARGUMENTS.items(), ids=ARGUMENTS.keys())
def test_bad_arguments_are_named(name, call):
    with pytest.raises(ValueError, match=f"^{name}.* must be"):
        call()


def test_paths(model, quantized, tmp_path):
    summary = repq_tf.summary(model)
    file = tmp_path / "model.tflite"
    calls = {
        "path": [
            lambda path: repq_tf.export_tflite(quantized, path),
            lambda path: repq_tf.export_tflite_float(model, path),
            lambda path: repq_tf.load_torch_checkpoint(model, path),
            lambda path: repq_tf.check_parity(quantized, path, X),
            summary.save,
        ],
        "tflite_path": [
            repq_tf.export_metadata,
            lambda path: repq_tf.export_c_array(path, tmp_path / "model.h"),
        ],
        "header_path": [lambda path: repq_tf.export_c_array(file, path)],
    }
    for name, functions in calls.items():
        for function in functions:
            for wrong in (None, tmp_path, 5, ""):
                with pytest.raises(
                    ValueError, match=f"^{name} must be the path of a file. Rec"
                ):
                    function(wrong)
    with pytest.raises(ValueError, match="^path must be the path of a file"):
        repq_tf.export_metadata(file, path=tmp_path)
    with pytest.raises(ValueError, match="array.*") as caught:
        file_path(np.zeros((100, 100)))
    assert len(str(caught.value)) < 100


def test_swapped_arguments_of_check_parity(quantized, tmp_path):
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match="^model must be a Functional .* Received: PosixPath"):
        repq_tf.check_parity(path, quantized, X)
    with pytest.raises(ValueError, match="^path must be the path of a file. Received: array"):
        repq_tf.check_parity(quantized, X, path)


def test_models_of_other_kinds_are_refused(tmp_path):
    functions = [
        lambda thing: repq_tf.quantize(thing, calibration_data=X),
        repq_tf.merge,
        repq_tf.summary,
        repq_tf.quantization_table,
        lambda thing: repq_tf.reparameterize(thing, "acnet"),
        lambda thing: repq_tf.reestimate_batch_norm(thing, X),
        lambda thing: repq_tf.load_torch_checkpoint(thing, tmp_path / "a.npz"),
        lambda thing: repq_tf.with_container(thing, "int8"),
        lambda thing: repq_tf.export_tflite(thing, tmp_path / "model.tflite"),
    ]
    for function in functions:
        for thing in ("model.keras", None, keras.layers.Dense(3), types.SimpleNamespace()):
            with pytest.raises(ValueError, match="^model must be a Functional or Sequential"):
                function(thing)
