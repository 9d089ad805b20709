"""The table of models, and what it refuses."""

import inspect
import pickle

import numpy as np
import pytest

from repq_tf import layers, models
from repq_tf.layers.options import NetworkOptions
from repq_tf.models.arguments import _option_names
from repq_tf.models.registry import register
from tests.models.outline import blocks

SIZES = "a0 a1 a2 b0 b1 b1g2 b1g4 b2 b2g2 b2g4 b3 b3g2 b3g4".split()
MOBILEONE = [f"mobileone_{size}" for size in ("tiny", "s0", "s1", "s2", "s3", "s4")]
ECBSR = [f"ecbsr_m{m}c{c}" for m in (4, 10, 16) for c in (8, 16, 32, 64)]
REPVGG_SR = [f"repvgg_sr_m{m}c{c}" for m in (4, 10) for c in (16, 32)]
# Every re-parameterized network that the library promises, and its plain twin.
PLAIN_TWINS = {
    **{
        f"{family}resnet{depth}": f"resnet{depth}"
        for family in ("", "ac_", "dbb_", "orepa_")
        for depth in (18, 34, 50)
    },
    **{f"{family}_resnet8": "resnet8" for family in ("ac", "dbb", "orepa", "repvgg")},
    "oabn_repvgg_tiny": "repvgg_tiny_plain",
    **{f"repvgg_{size}": f"repvgg_{size}_plain" for size in [*SIZES, "d2se", "tiny"]},
    **{f"qarepvgg_{size}": f"repvgg_{size}_plain" for size in [*SIZES, "tiny"]},
    **{f"orepa_repvgg_{size}": f"repvgg_{size}_plain" for size in ("a0", "a1", "a2")},
    **{name: f"{name}_plain" for name in (*MOBILEONE, *ECBSR, *REPVGG_SR)},
}


def test_list():
    assert set(models.list_models()) >= {*PLAIN_TWINS, *PLAIN_TWINS.values()}
    assert models.list_models() == sorted(models.list_models())


def test_list_by_task():
    names = [*ECBSR, *REPVGG_SR]
    plain = [PLAIN_TWINS[name] for name in names]
    assert models.list_models("super_resolution") == sorted([*names, *plain])
    both = [*models.list_models("classification"), *models.list_models("super_resolution")]
    assert sorted(both) == models.list_models()
    with pytest.raises(ValueError, match="classification, super_resolution. Received: 'segm'"):
        models.list_models("segm")


def defaults(function):
    return {
        argument: parameter.default
        for argument, parameter in inspect.signature(function).parameters.items()
    }


@pytest.mark.parametrize("name", models.list_models())
def test_every_model_is_a_public_function(name):
    function = getattr(models, name)
    assert name in models.__all__ and name in dir(models)
    assert function.__name__ == name
    assert pickle.loads(pickle.dumps(function)) is function
    expected = {"classes": None, "input_shape": None, "width": 1.0, "weights": None}
    if name in models.list_models("super_resolution"):
        expected = {"scale": 2, "channels": 1, "input_shape": None}
        if name in REPVGG_SR:
            expected["block"] = "RepVGGBlock"
    assert f"models.{name}({next(iter(expected))}=" in function.__doc__
    assert defaults(function) == {**expected, "block_options": inspect.Parameter.empty}


def test_networks_are_for_imagenet_unless_asked():
    model = models.mobileone_s0()
    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1000)


def test_names_can_be_imported():
    from repq_tf.models import orepa_resnet34

    assert orepa_resnet34 is models.orepa_resnet34
    with pytest.raises(ImportError, match="resnet35"):
        from repq_tf.models import resnet35  # noqa: F401


def test_a_typo_is_told_what_exists():
    with pytest.raises(AttributeError, match="has no 'resnet51'; .*ac_resnet50.*repvgg_a0"):
        models.resnet51  # noqa: B018


def test_plain_twins():
    for name, plain in PLAIN_TWINS.items():
        assert models.plain_twin(name) == plain
        assert models.plain_twin(plain) == plain


def test_build_takes_what_shapes_and_labels_are_made_of():
    model = models.build(
        "resnet18", classes=np.int64(4), input_shape=[8, np.int32(8), 1], width=np.float32(0.1)
    )
    assert model.name == "resnet18"
    assert model.input.shape == (None, 8, 8, 1)
    assert model.output.shape == (None, 4)


def test_options_reach_every_block():
    model = models.ac_resnet18(
        3,
        (96, 96, 3),
        0.01,
        bn_statistics="batch",
        synchronized=False,
        merged=True,
        kernel_initializer="ones",
        gamma_initializer="zeros",
    )
    assert len(blocks(model)) == 20
    for block in blocks(model):
        assert block.bn_statistics == "batch"
        assert block.merged and not block.synchronized
        assert type(block.kernel_initializer).__name__ == "Ones"
        if block.kernel_size == (3, 3):
            assert block.gamma_initializer == "zeros"


@pytest.mark.slow
def test_options_reach_all_of_orepa():
    model = models.orepa_resnet50(3, (96, 96, 3), 0.01, momentum=0.5)
    assert {block.momentum for block in blocks(model)} == {0.5}


@pytest.mark.slow
def test_options_reach_mobileone_but_not_its_stem():
    stem, *others = blocks(models.mobileone_s1(3, (8, 8, 1), 0.01, branches=2, momentum=0.5))
    assert (stem.branches, stem.momentum) == (1, 0.5)
    assert {(block.branches, block.momentum) for block in others} == {(2, 0.5)}


def test_options_reach_repvgg():
    model = models.repvgg_a0(3, (8, 8, 1), 0.01, momentum=0.5, weight_bits=4)
    assert {(block.momentum, block.weight_bits) for block in blocks(model)} == {(0.5, 4)}


@pytest.mark.parametrize("find", [models.build, models.plain_twin])
def test_unknown_name(find):
    with pytest.raises(ValueError, match="ac_resnet18, .*repvgg_a0.*Received: 'resnet19'"):
        find("resnet19")


def test_names_are_unique():
    def resnet18():
        pass

    with pytest.raises(ValueError, match="'resnet18', which is registered"):
        register(resnet18)


def test_tasks_are_known():
    def sharpen():
        pass

    with pytest.raises(ValueError, match="task must be one of: .* Received: 'sharpening'"):
        register(sharpen, task="sharpening")
    assert "sharpen" not in models.list_models()


@pytest.mark.parametrize("name", ["resnet18", "repvgg_a0"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "classes must be a positive whole number. Received: 0"),
        ({"classes": 2.5}, "classes .* Received: 2.5"),
        ({"classes": True}, "classes .* Received: True"),
        ({"input_shape": (32, 32)}, r"\(height, width, channels\).* Received: \(32, 32\)"),
        ({"input_shape": (None, 32, 32, 3)}, "without the batch"),
        ({"input_shape": 32}, "input_shape .* Received: 32"),
        ({"input_shape": (None, 32, 3)}, "size of input_shape .* Received: None"),
        ({"input_shape": (32, 0, 3)}, "size of input_shape .* Received: 0"),
        ({"width": 0}, "width must be a positive number. Received: 0"),
        ({"width": float("nan")}, "width .* Received: nan"),
        ({"width": "half"}, "width .* Received: 'half'"),
        ({"wights": 3}, "block_options of .* bn_statistics, .* Received: wights"),
        ({"strides": 2}, "block_options .* Received: strides"),
        ({"gamma_initializer": "ones"}, "block_options .* Received: gamma_initializer"),
        ({"bn_statistics": "exact"}, "Received: 'exact'"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, **arguments)


def test_the_type_of_options_names_those_of_all_blocks():
    kinds = [getattr(layers, name) for name in layers.__all__]
    kinds = [kind for kind in kinds if issubclass(kind, layers.ReparamConv)]
    kinds = [kind for kind in kinds if not issubclass(kind, layers.ConvTransposeBlock)]
    assert len(kinds) > 10
    assert set(NetworkOptions.__annotations__) == set().union(*map(_option_names, kinds))
