"""Every pattern takes every convolution; the stock layers themselves are the reference."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm, Chain, Sum
from repq_tf.layers import ReparamConv
from repq_tf.reparameterization import PATTERNS

layers = keras.layers
array = keras.ops.convert_to_numpy
SHAPE = (9, 8, 4)
# Layers without a batch norm: training starts from other moments.
BARE = {"bare", "relu", "depthwise_bare"}
VARIANTS = {
    f"{pattern} {options}": {"pattern": pattern, "options": options}
    for pattern, options in [
        *((name, {}) for name in PATTERNS),
        *(("qarepvgg", {"variant": variant}) for variant in ("S1", "S2", "S3")),
        ("ecb", {"identity": True}),
        ("mobileone", {"branches": 3}),
        ("expandnet", {"rate": 1}),
        ("expandnet", {"use_bias": True}),
        ("expandnet", {"use_bias": True, "use_batch_norm": False}),
        ("acnet", {"merged": True}),
        ("repvgg", {"epsilon": 1e-2}),
    ]
}


def images(count=8):
    return np.random.default_rng(0).normal(0.3, 1, (count, *SHAPE))


def every_convolution(x):
    """Convolutions of every kind on one input, by name."""
    outputs = []

    def norm(y, name, **options):
        outputs.append(layers.BatchNormalization(name=f"{name}_bn", **options)(y))

    def conv(name, filters=6, size=3, **options):
        return layers.Conv2D(filters, size, name=name, **options)(x)

    def depthwise(name, **options):
        return layers.DepthwiseConv2D(3, name=name, **options)(x)

    norm(conv("plain", use_bias=False), "plain")
    norm(conv("same", 4, padding="same"), "same", momentum=0.8, epsilon=1e-4)
    norm(conv("stride", padding="same", strides=2), "stride", scale=False)
    norm(conv("uneven", padding="same", strides=(2, 1), groups=2), "uneven", center=False)
    norm(conv("wide", size=5, padding="same"), "wide")
    norm(conv("even", size=(2, 4), padding="same", strides=2), "even")
    norm(conv("pointwise", size=1), "pointwise")
    y = layers.ZeroPadding2D(((0, 1), (1, 0)), name="pad")(x)
    y = layers.Conv2D(6, 3, strides=2, name="padded")(y)
    norm(y, "padded")
    norm(depthwise("depthwise", padding="same"), "depthwise")
    norm(depthwise("multiplied", padding="same", depth_multiplier=2), "multiplied")
    outputs.append(conv("bare", padding="same", use_bias=False))
    outputs.append(conv("relu", 4, padding="same", activation="relu"))
    outputs.append(depthwise("depthwise_bare", strides=2))
    return outputs


def source(function=every_convolution, seed=0):
    """A model whose weights and statistics are random."""
    keras.utils.set_random_seed(seed)
    x = keras.Input(SHAPE)
    model = keras.Model(x, function(x))
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.path.endswith("variance"):
            variable.assign(rng.uniform(0.3, 2, variable.shape))
        elif not variable.path.endswith("kernel"):
            sign = rng.choice((1, 1, -1), variable.shape)
            variable.assign(sign * rng.uniform(0.3, 1.5, variable.shape))
    return model


def convert(model, settings, **options):
    return repq_tf.reparameterize(model, settings, verbose=False, **options)


def outputs(model, x, **options):
    y = model(x, **options)
    return [array(y)] if not isinstance(y, list | tuple) else [array(item) for item in y]


def left(model):
    """The convolutions that are stock layers still."""
    stock = layers.Conv2D | layers.DepthwiseConv2D
    return {layer.name for layer in model.layers if isinstance(layer, stock)}


def expected_left(settings):
    """What each pattern cannot take, as its paper defines it."""
    pattern, options = settings["pattern"], settings["options"]
    found = set()
    if pattern not in ("mobileone", "orepa", "expandnet", "dirac", "weight_norm"):
        found = {"pointwise"}
    if pattern == "ecb":  # 3x3 only
        found |= {"wide", "even"}
    if options.get("identity"):  # the input's shape
        found |= {"plain", "stride", "uneven", "padded", "multiplied", "bare"}
        found |= {"depthwise_bare"}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_inference_stays(settings, float64):
    model, x = source(), images()
    new = convert(model, settings)
    assert left(new) == expected_left(settings)
    for layer, a, b in zip(model.outputs, outputs(model, x), outputs(new, x), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9, err_msg=layer.name)
    # The batch norms are in the blocks.
    norms = [item for item in new.layers if isinstance(item, layers.BatchNormalization)]
    assert {item.name for item in norms} == {f"{name}_bn" for name in left(new) - BARE}


@pytest.mark.slow(10)
def test_float32_is_as_exact_as_float32_is():
    model, x = source(), images().astype("float32")
    for name in PATTERNS:
        new = convert(model, name)
        for a, b in zip(outputs(model, x), outputs(new, x), strict=True):
            assert np.abs(a - b).max() < 1e-5 * np.abs(a).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("pattern", sorted(set(PATTERNS) - {"ecb"}))
def test_training_starts_from_the_source(pattern, float64):
    """The outputs, and what the batch does to the moving statistics."""

    def normalized(x):
        return every_convolution(x)[: -len(BARE)]

    model, x = source(normalized), images()
    if pattern == "qarepvgg":  # two batch norms in a row have two epsilons
        repq_tf.reestimate_batch_norm(model, x)
    new = convert(model, pattern)
    tolerance = 1e-4 if pattern == "qarepvgg" else 1e-9
    names = [tensor.name for tensor in model.outputs]
    before = zip(
        names, outputs(model, x, training=True), outputs(new, x, training=True), strict=True
    )
    for name, a, b in before:
        np.testing.assert_allclose(b, a, atol=tolerance, err_msg=name)
    after = zip(names, outputs(model, x), outputs(new, x), strict=True)
    for name, a, b in after:
        np.testing.assert_allclose(b, a, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "acnet {}",
        "orepa {}",
        "expandnet {}",
        "weight_norm {}",
        "qarepvgg {}",
        "qarepvgg {'variant': 'S2'}",
        "qarepvgg {'variant': 'S3'}",
        "acnet {'merged': True}",
    ],
)
def test_calibrated_training_starts_from_the_source(name):
    """All layers, with the moments of the very batch."""
    model, x = source(), images().astype("float32")
    repq_tf.reestimate_batch_norm(model, x)
    new = convert(model, VARIANTS[name], calibration_data=x)
    for training, tolerance in ((False, 1e-5), (True, 5e-3)):
        expected = outputs(model, x, training=training)
        actual = outputs(new, x, training=training)
        for tensor, a, b in zip(model.outputs, expected, actual, strict=True):
            # Another batch norm has another epsilon.
            error = np.abs(a - b).max() / np.abs(a).max()
            assert error < tolerance, (tensor.name, training, error)


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_two_steps_move_every_branch(settings, float64):
    """The first one moves the zeros, the second what stands behind them."""

    def square(x):
        y = layers.Conv2D(4, 3, padding="same", name="conv")(x)
        return layers.BatchNormalization(name="bn")(y)

    new, x = convert(source(square), settings), images()
    before = {v.path: array(v) for v in new.trainable_variables}
    new.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    y = np.random.default_rng(3).normal(size=(len(x), *new.output_shape[1:]))
    new.fit(x, y, batch_size=4, epochs=1, verbose=0)
    for variable in new.trainable_variables:
        # A batch norm takes away the constants before it.
        if not variable.path.endswith(("beta", "bias")):
            assert (array(variable) != before[variable.path]).any(), variable.path


def test_a_channel_of_gamma_zero_stays_alive(float64):
    """A residual branch that starts at zero, as ResNet recipes have it."""
    model = source(lambda x: every_convolution(x)[1])
    model.get_layer("same_bn").gamma.assign([0.0, 1.0, -1.0, 0.0])
    kernel = array(model.get_layer("same").kernel)
    for pattern in ("acnet", "qarepvgg", "orepa", "weight_norm"):
        new, x = convert(model, pattern), images()
        np.testing.assert_allclose(outputs(new, x)[0], outputs(model, x)[0], atol=1e-9)
        main = [v for v in new.trainable_variables if v.shape == kernel.shape]
        assert any(np.allclose(array(v), kernel) for v in main), pattern


@keras.saving.register_keras_serializable("tests")
class Nested(ReparamConv):
    """The kernel of full size is behind a chain, a scale and a batch norm."""

    def make_branches(self, in_channels):
        first = self.convolution((1, 1), "first", filters=2 * in_channels, groups=1)
        chain = Chain([first, self.batch_norm(self.convolution(name="square"))])
        side = self.batch_norm(self.convolution((1, 1), "side"))
        return Sum([self.batch_norm(chain, name="outer"), side])


@pytest.mark.slow
def test_what_has_no_factors_is_refused_by_name():
    model = source()
    for settings in (
        {"pattern": "expandnet", "options": {"expansion": "CK"}, "layers": "wide"},
        {"pattern": repq_tf.layers.OREPAStem, "layers": "wide"},
    ):
        with pytest.raises(ValueError, match="wide: .*several spatial convolutions"):
            convert(model, settings)
    with pytest.raises(ValueError, match="same: no branch of 'sum' has a kernel of"):
        convert(model, {"pattern": Nested, "layers": "same"})


@pytest.mark.slow
def test_weights_out_of_bounds_are_refused(float64):
    """OABN clips gammas; what it would change is left."""
    model, x = source(), images()
    model.get_layer("same_bn").gamma.assign([0.5, 0.5, 100.0, 0.5])
    new = convert(model, {"pattern": "repvgg", "options": {"oabn_k": 4.0}})
    assert "same" in left(new) and "plain" not in left(new)
    for a, b in zip(outputs(model, x), outputs(new, x), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9)


@pytest.mark.slow
def test_epsilon_and_momentum_come_along():
    model = source()
    block = convert(model, "acnet").get_layer("same")
    norms = [node for node in block.expression.walk() if isinstance(node, BatchNorm)]
    assert len(norms) == 3
    for node in norms:
        assert (node.statistics.momentum, node.epsilon) == (0.8, 1e-4)
