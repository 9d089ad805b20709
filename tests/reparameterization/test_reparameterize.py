"""Whole models: what is converted, what is left, and that everything else stays."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ACBlock, MobileOneBlock, ReparamConv
from tests.deployment.files import assert_exact, parity
from tests.quantization.networks import images, network, relative, settle

layers = keras.layers
array = keras.ops.convert_to_numpy
SHAPE = (10, 10, 3)


def small(x):
    """Convolutions with a batch norm, a bias and an activation; a residual sum."""
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(x)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.ReLU(name="depthwise_relu")(layers.BatchNormalization(name="depthwise_bn")(y))
    y = layers.Conv2D(8, 1, name="pointwise")(y)
    x = layers.Add(name="add")([x, layers.BatchNormalization(name="pointwise_bn")(y)])
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="last")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return layers.Dense(5, name="logits")(x)


def convert(model, settings="acnet", **options):
    return repq_tf.reparameterize(model, settings, verbose=False, **options)


def blocks(model):
    return {item.name for item in model.layers if isinstance(item, ReparamConv)}


def weights(model):
    return {v.path: array(v) for v in model.weights}


def assert_same(new, model, x, tolerance=1e-6):
    for a, b in zip(keras.tree.flatten(new(x)), keras.tree.flatten(model(x)), strict=True):
        assert relative(a, b) < tolerance


@pytest.mark.slow
def test_from_a_plain_network_to_the_integer_file(tmp_path):
    model = network(small)
    new = convert(model, "mobileone", calibration_data=images())
    assert blocks(new) == {"stem", "depthwise", "pointwise", "last"}
    assert_same(new, model, images())
    new.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", run_eagerly=True)
    y = np.random.default_rng(1).normal(size=(48, 5))
    losses = new.fit(images(), y, batch_size=24, epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    qat = repq_tf.quantize(new, calibration_data=images(), verbose=False)
    qat.compile(keras.optimizers.SGD(0.001), "mse", run_eagerly=True)
    qat.fit(images(), y, batch_size=24, verbose=0)
    _, report = parity(qat, tmp_path / "x.tflite", images(64, seed=5))
    assert_exact(report)


@pytest.mark.slow
def test_a_network_of_keras_applications(float64):
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=7)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "mean")):
            variable.assign(rng.normal(0, 0.3, variable.shape))
    x = rng.normal(size=(2, 32, 32, 3))
    for pattern, count in (("repvgg", 18), ("mobileone", 52)):
        new = convert(model, pattern)
        assert len(blocks(new)) == count
        assert not any(isinstance(item, layers.Conv2D) for item in new.layers) or count == 18
        assert_same(new, model, x, 1e-10)


@pytest.mark.slow
def test_the_given_model_is_left_alone():
    model = network(small)
    before, config = weights(model), model.get_config()
    new = convert(model, calibration_data=images())
    new.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    new.fit(images(), np.zeros((48, 5)), verbose=0)
    assert model.get_config() == config
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)


@pytest.mark.slow
def test_the_result_is_saved_and_loaded(tmp_path):
    new = convert(network(small), {"pattern": "dbb"})
    new.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    np.testing.assert_array_equal(array(loaded(images())), array(new(images())))


def test_a_sequential_model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    new = convert(settle(model))
    assert blocks(new) == {"conv"}
    assert_same(new, model, images())


def test_nested_models_stand_in_the_new_one():
    def inner(x):
        x = layers.Conv2D(4, 3, padding="same", name="conv")(x)
        return layers.BatchNormalization(name="bn")(x)

    part = keras.Model(x := keras.Input(SHAPE), inner(x), name="part")
    model = network(lambda x: layers.Flatten()(layers.ReLU()(part(x))))
    new = convert(model, {"pattern": "acnet", "layers": "part_*"})
    assert blocks(new) == {"part_conv"}
    assert_same(new, model, images())


def test_what_is_shared_stays_shared():
    def twice(x):
        conv = layers.Conv2D(3, 3, padding="same", name="twice")
        norm = layers.BatchNormalization(name="shared")
        x = norm(conv(conv(x)))
        x = norm(layers.Conv2D(3, 3, padding="same", name="before_shared")(x))
        return layers.Conv2D(3, 3, name="alone")(x)

    model = network(twice)
    new = convert(model)
    assert blocks(new) == {"twice", "before_shared", "alone"}
    assert sum(isinstance(item, ReparamConv) for item in new.layers) == 3
    assert sum(v.path.startswith("shared/") for v in new.weights) == 4
    assert_same(new, model, images())


# Keys of inputs that are not their names, which Keras discourages and allows.
OTHER_KEYS = pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict:UserWarning")


def several(structure):
    """A model of two inputs and two outputs, in the given structure."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input(SHAPE, name="a"), keras.Input(SHAPE, name="b")
    x = layers.Conv2D(4, 3, name="first")(a)
    y = layers.Conv2D(4, 3, strides=2, name="second")(b)
    inputs, outputs = {
        "lists": ([b, a], [y, x]),
        "dicts": ({"right": b, "left": a}, {"y": y, "x": x}),
    }[structure]
    return keras.Model(inputs, outputs)


@OTHER_KEYS
@pytest.mark.parametrize("structure", ["lists", "dicts"])
def test_several_inputs_and_outputs(structure):
    model = several(structure)
    new = convert(model)
    assert blocks(new) == {"first", "second"}
    a, b = images(4), images(4, seed=1)
    x = [b, a] if structure == "lists" else {"right": b, "left": a}
    assert_same(new, model, x)
    assert_same(convert(model, calibration_data=x), model, x)
    with pytest.raises(ValueError, match="arrays for each of the inputs"):
        convert(model, calibration_data=a)


@OTHER_KEYS
@pytest.mark.parametrize("structure", ["lists", "dicts"])
def test_several_inputs_of_a_nested_model(structure):
    part = several(structure)
    x = keras.Input(SHAPE)
    y = layers.Conv2D(3, 3, padding="same", name="other")(x)
    given = [x, y] if structure == "lists" else {"left": y, "right": x}
    model = keras.Model(x, part(given))
    assert_same(convert(model), model, images())


def test_weights_that_a_layer_makes_constants_of():
    def normalized(x):
        layer = layers.Normalization(name="normalization")
        layer.adapt(images() * 3 + 1)
        return layers.Conv2D(4, 3, name="conv")(layer(x))

    model = network(normalized)
    assert_same(convert(model), model, images())
    assert_same(repq_tf.merge(model), model, images())


def test_layers_that_are_left_say_why(capsys):
    def odd(x):
        outputs = [
            layers.Conv2D(4, 3, dilation_rate=2, name="dilated")(x),
            layers.Conv2D(4, 3, kernel_constraint="non_neg", name="bounded")(x),
            layers.Conv2D(4, 1, name="small")(x),
            layers.Conv2D(4, 3, name="good")(x),
        ]
        y = layers.Conv2D(4, 3, name="frozen")(x)
        outputs.append(layers.BatchNormalization(trainable=False, name="norm")(y))
        y = layers.Conv2D(4, 3, name="precise")(x)
        outputs.append(layers.BatchNormalization(dtype="float64", name="wide")(y))
        y = layers.Conv2D(4, 3, name="rows")(x)
        outputs.append(layers.BatchNormalization(axis=1, name="by_row")(y))
        return outputs

    model = network(odd)
    new = repq_tf.reparameterize(model, "acnet")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert blocks(new) == {"good"}
    assert "Conv2D 3x3  ACBlock  moments unknown" in lines["good"]
    for name, reason in {
        "dilated": "dilation_rate (2, 2)",
        "bounded": "kernel_constraint is set",
        "small": "smaller than min_kernel_size=2",
        "frozen": "norm differs in trainable",
        "precise": "wide differs in dtype",
        "rows": "the axis of by_row is not the channels'",
    }.items():
        assert "left" in lines[name] and lines[name].endswith(reason), lines[name]
    assert_same(new, model, images())


def test_batch_norms_that_are_not_the_convolutions():
    def apart(x):
        y = layers.Conv2D(4, 3, activation="relu", name="activated")(x)
        z = layers.Conv2D(4, 3, name="read_twice")(x)
        return [
            layers.BatchNormalization(name="a")(y),
            layers.BatchNormalization(name="b")(z),
            z,
        ]

    model = network(apart)
    new = convert(model)
    assert blocks(new) == {"activated", "read_twice"}
    assert {"a", "b"} <= {item.name for item in new.layers}
    assert_same(new, model, images())


def test_settings_choose_layers_and_options():
    model = network(small)
    new = convert(
        model,
        {"pattern": "mobileone", "layers": ["stem", "point*"], "options": {"branches": 3}},
    )
    assert blocks(new) == {"stem", "pointwise"}
    assert new.get_layer("pointwise").branches == 3
    again = convert(new, {"pattern": "acnet", "layers": "last"})  # blocks are kept
    assert isinstance(again.get_layer("stem"), MobileOneBlock)
    assert isinstance(again.get_layer("last"), ACBlock)
    assert_same(again, model, images())
    assert blocks(convert(model, {"pattern": "acnet", "min_kernel_size": 1})) == {
        "stem",
        "depthwise",
        "pointwise",
        "last",
    }


def test_frozen_layers_and_their_policies_stay():
    model = network(small)
    model.get_layer("last").trainable = False
    new = convert(model)
    assert not new.get_layer("last").trainable_variables
    assert new.get_layer("stem").trainable_variables
    mixed = keras.DTypePolicy("mixed_float16")
    model = network(lambda x: layers.Conv2D(4, 3, dtype=mixed, name="conv")(x))
    block = convert(model).get_layer("conv")
    assert (block.compute_dtype, block.variable_dtype) == ("float16", "float32")


def test_a_block_of_ones_own():
    @keras.saving.register_keras_serializable("tests")
    class CrossBlock(ReparamConv):
        def make_branches(self, in_channels):
            whole = self.batch_norm(self.convolution(name="whole"))
            tall = self.batch_norm(self.convolution((self.kernel_size[0], 1), name="tall"))
            return repq_tf.branches.Sum([whole, tall])

    model = network(small)
    new = convert(model, CrossBlock)
    assert blocks(new) == {"stem", "depthwise", "pointwise", "last"}
    assert_same(new, model, images())


def test_initialization_of_ones_own():
    class Halves(ReparamConv):
        def make_branches(self, in_channels):
            names = ("left", "right")
            return repq_tf.branches.Sum(
                [self.convolution(name=name, use_bias=True) for name in names]
            )

    def halve(block, convolution, batch_norm):
        assert batch_norm is None
        for branch in block.expression.children:
            branch.kernel.assign(convolution.kernel / 2)
            branch.bias.assign(convolution.bias / 2)

    model = network(small)
    settings = {"pattern": Halves, "layers": "last", "initialize": halve}
    new = convert(model, settings, calibration_data=images())
    left, right = new.get_layer("last").expression.children
    np.testing.assert_array_equal(array(left.kernel), array(right.kernel))
    assert_same(new, model, images())
    with pytest.raises(ValueError, match=r"last: the block cannot keep the function \(rel"):
        convert(model, {**settings, "initialize": lambda *given: None})


@pytest.mark.parametrize(
    "settings, message",
    [
        ("acnets", "pattern must be one of acnet, csla, .*Received: 'acnets'"),
        ({}, "pattern must be one of .*Received: None"),
        (layers.Conv2D, "or a subclass of ReparamConv"),
        ({"pattern": "acnet", "bits": 8}, r"settings must be among .*Received: \['bits'\]"),
        ({"pattern": "acnet", "layers": "convs_*"}, "'convs_.' matches no convolution.*stem"),
        ({"pattern": "acnet", "layers": []}, "layers must be name patterns"),
        (
            {"pattern": "acnet", "options": {"filters": 3}},
            r"\['filters'\] come from the layers",
        ),
        (
            {"pattern": "acnet", "options": {"branches": 3}},
            "no layer can be converted.*branches",
        ),
        ({"pattern": "acnet", "min_kernel_size": 0}, "min_kernel_size must be a positive"),
        ({"pattern": "acnet", "initialize": 3}, "initialize must be a function"),
        ({"pattern": "acnet", "min_kernel_size": 9}, "stem: smaller than min_kernel_size=9"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        convert(network(small), settings)


def test_a_model_of_blocks_alone_is_told_how_to_be_plain():
    blocks = network(lambda x: repq_tf.layers.ACBlock(4)(x))
    with pytest.raises(ValueError, match=r"no Conv2D or DepthwiseConv2D .*repq_tf.merge"):
        convert(blocks, "acnet")
    assert convert(repq_tf.merge(blocks), "acnet").layers
