"""`quantize`: the function that it starts from, and what it keeps."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import MODES
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from repq_tf.quantizers import find
from tests.quantization.networks import (
    SHAPE,
    array,
    block_of,
    equal,
    images,
    layers,
    network,
    quantize,
    relative,
    residual,
    stock,
    train,
    values,
)

X = images()


@pytest.fixture(scope="module")
def model():
    return network(residual)


@pytest.fixture(scope="module")
def tiny():
    return network(lambda x: ACBlock(3, name="ac")(ConvBNBlock(3, name="stem")(x)))


@pytest.fixture(scope="module")
def qat(model):
    return quantize(model)


# The given model and the new one.


@pytest.mark.slow
def test_the_given_model_is_left_untouched(model):
    before, config, output = values(model), model.get_config(), array(model(X))
    qat = quantize(model, bits=4)
    train(qat, X)
    assert equal(values(model), before) and model.get_config() == config
    assert np.array_equal(array(model(X)), output)
    layers_of = [{id(layer) for layer in m.layers} for m in (model, qat)]
    assert not layers_of[0] & layers_of[1]
    assert not {id(v) for v in model.weights} & {id(v) for v in qat.weights}


def test_branch_weights_are_kept(model, qat):
    for name in ("stem", "ac", "vgg"):
        source, block = model.get_layer(name), qat.get_layer(name)
        assert type(block) is type(source) and block.weight_bits == 8
        sources = {v.path: array(v) for v in source.expression.weights}
        kept = {v.path: array(v) for v in block.expression.weights}
        assert list(kept) == list(sources)
        for path, value in sources.items():
            if "moving" not in path:
                np.testing.assert_array_equal(kept[path], value, err_msg=path)
    dense, block = model.get_layer("logits"), block_of(qat, "logits")
    np.testing.assert_array_equal(array(block.inner.kernel)[0, 0], array(dense.kernel))
    np.testing.assert_allclose(array(block.inner.bias), array(dense.bias), atol=0.05)


def test_inputs_and_outputs(model, qat):
    assert [t.name for t in qat.inputs] == ["image"]
    assert qat.input_shape == model.input_shape and qat.output_shape == model.output_shape
    assert not getattr(qat, "compiled", False) and qat.name == "net_quantized"


@pytest.mark.slow
def test_8_bits_start_near_the_float_model(model, qat):
    assert relative(qat(X), model(X)) < 0.05
    errors = [relative(quantize(model, bits=bits)(X), model(X)) for bits in (6, 4)]
    assert relative(qat(X), model(X)) < errors[0] < errors[1], errors


@pytest.mark.slow
def test_it_is_deterministic(model, qat):
    assert equal(values(quantize(model)), values(qat))
    for data in ([X[:20], X[20:]], [(X[:20], 1), (X[20:], 2)]):
        for one, other in zip(
            values(quantize(model, calibration_data=data)), values(qat), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_saved_and_loaded_it_is_the_same(qat, tmp_path):
    qat.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    assert equal(values(loaded), values(qat))
    np.testing.assert_array_equal(array(loaded(X)), array(qat(X)))
    np.testing.assert_array_equal(array(loaded(X, training=True)), array(qat(X, training=True)))


# One function, whatever the statistics.


@pytest.mark.slow
def test_all_modes_start_from_the_same_function(model):
    """The float network's, where nothing is rounded, whatever images calibrate."""
    rules = {"*": {"weight_bits": None, "activation_bits": None}}
    for mode in MODES:
        qat = quantize(model, bn_statistics=mode, rules=rules, calibration_data=3 * X[:8] + 1)
        assert relative(qat(X), model(X)) < 1e-5, mode
        assert relative(quantize(model, bn_statistics=mode)(X), model(X)) < 0.05, mode


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains(model, mode):
    qat = quantize(model, bits=4, bn_statistics=mode)
    before = {v.path: array(v) for v in qat.weights}
    losses = train(qat, X, steps=1) + train(qat, X, steps=4)
    assert np.isfinite(losses).all()
    moved = {p for v in qat.weights if not np.array_equal(before[p := v.path], array(v))}
    assert {v.path for v in qat.trainable_variables if v.path.endswith("kernel")} <= moved
    moving = {p for p in moved if "moving" in p and "/sum/" in p}
    assert bool(moving) == (mode in ("batch", "estimate", "sample")), moving


@pytest.mark.slow
def test_estimate_compensates_gamma_and_beta(model):
    """Its moving moments are Eq. 6's, not the true ones; gamma and beta make up for it."""
    qat = quantize(model, bn_statistics="estimate")
    exact = quantize(model, bn_statistics="batch")
    for name in ("ac", "vgg"):
        one, other = qat.get_layer(name), exact.get_layer(name)
        np.testing.assert_allclose(
            array(one.inner.merge().kernel),
            array(other.inner.merge().kernel),
            rtol=1e-3,
            atol=1e-5,
        )
        norms = zip(one.merged_batch_norms, other.merged_batch_norms, strict=True)
        for estimated, true in norms:
            ratio = array(estimated.statistics.moving_variance) / array(
                true.statistics.moving_variance
            )
            gammas = array(estimated.gamma) / array(true.gamma)
            np.testing.assert_allclose(gammas, np.sqrt(ratio), rtol=1e-3)
        assert not np.allclose(gammas, 1, atol=0.02) or name == "vgg"


def test_a_restored_batch_norm_starts_as_the_identity(model, qat):
    for name in ("ac", "vgg"):
        restored = block_of(qat, name).restored
        gain, shift = map(array, restored.gain_and_shift())
        np.testing.assert_allclose(gain, 1, rtol=0.02)  # but for what it corrects
        np.testing.assert_allclose(shift, 0, atol=0.1)
        # And the moments are those of what it normalizes, so that training starts there too.
        assert (array(restored.statistics.moving_variance) > 0).all()
    assert block_of(qat, "logits").restored is None
    assert relative(qat(X, training=True), qat(X)) < 0.2


@pytest.mark.slow
def test_restored_batch_norms_where_asked_for(tiny):
    def restored(**options):
        qat = quantize(tiny, calibration_data=X[:8], **options)
        assert block_of(qat, "stem").restored is None  # it has its own, at the root
        return block_of(qat, "ac").restored is not None

    assert restored()
    assert not restored(bn_statistics="batch")
    assert not restored(restore_batch_norm=False)
    assert restored(bn_statistics="running", restore_batch_norm=True)


@pytest.mark.slow
def test_the_merged_baseline_gets_a_batch_norm(model):
    merged = repq_tf.merge(model)
    qat = quantize(merged, restore_batch_norm=True)
    assert [block_of(qat, n).restored is not None for n in ("stem", "ac", "logits")] == [
        *(True, True, False)
    ]
    assert relative(qat(X), model(X)) < 0.05
    losses = train(qat, X)
    assert np.isfinite(losses).all()


@pytest.mark.slow
def test_a_trained_restored_batch_norm_is_kept():
    """A float model trained merged has its own; it is not replaced by the identity."""
    options = {"merged": True, "name": "b"}
    model = network(lambda x: ACBlock(6, activation="relu", **options)(x), seed=3)
    block = model.get_layer("b")
    rng = np.random.default_rng(0)
    block.restored.gamma.assign(rng.uniform(0.5, 1.5, 6))
    block.restored.beta.assign(rng.normal(size=6))
    repq_tf.reestimate_batch_norm(model, X)
    for mode in ("restored", "batch", "running"):
        qat = quantize(model, bn_statistics=mode)
        gain, _ = block_of(qat, "b").restored.gain_and_shift()
        assert not np.allclose(array(gain), 1, atol=0.1)
        assert relative(qat(X), model(X)) < 0.05


# Stock layers.


@pytest.mark.slow
def test_stock_layers_keep_their_function():
    model = network(stock)
    qat = quantize(model)
    assert relative(qat(X), model(X)) < 0.06
    # In floating point there is no rounding left.
    rules = {"*": {"weight_bits": None, "activation_bits": None}}
    loose = quantize(model, rules=rules)
    assert relative(loose(X), model(X)) < 1e-5


@pytest.mark.slow
def test_a_folded_batch_norm_is_the_root(qat):
    model = network(stock)
    qat = quantize(model)
    for name, has_gamma, has_beta in (("c", 1, 1), ("d1", 0, 1), ("p", 1, 0)):
        block, norm = qat.get_layer(name), model.get_layer(f"{name}_bn")
        assert isinstance(block, ConvBNBlock) and block.root is block.expression
        assert block.restored is None and block.epsilon == norm.epsilon
        gamma = array(norm.gamma) if has_gamma else 1.0
        beta = array(norm.beta) if has_beta else 0.0
        np.testing.assert_array_equal(array(block.root.gamma), gamma * np.ones(block.filters))
        np.testing.assert_array_equal(array(block.root.beta), beta * np.ones(block.filters))
        # The kernel that is quantized is the convolution's own, without the batch norm.
        kernel = array(model.get_layer(name).kernel)
        merged = array(block.inner.merge().kernel)
        np.testing.assert_allclose(merged.ravel(), kernel.ravel(), rtol=1e-6)


@pytest.mark.parametrize("what", ["regularizer", "frozen", "frozen block"])
def test_regularizers_and_frozen_layers_stay(what):
    inputs = keras.Input(SHAPE, name="image")
    options = {"kernel_regularizer": "l2"} if what == "regularizer" else {"trainable": False}
    layer = layers.Conv2D(4, 3, name="c", **options)
    if what == "frozen block":
        layer = ACBlock(4, name="c", **options)
    qat = quantize(keras.Model(inputs, layer(inputs)))
    if what == "regularizer":
        assert len(qat.losses) == 1
    else:
        assert not [v.path for v in qat.trainable_variables if "kernel" in v.path]


def test_what_is_not_kept_is_said():
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(4, 3, kernel_constraint="non_neg", bias_regularizer="l2", name="c")(
        inputs
    )
    x = layers.BatchNormalization(gamma_regularizer="l2", name="n")(x)
    with pytest.warns(UserWarning) as found:
        quantize(keras.Model(inputs, x))
    texts = [str(w.message) for w in found if "goes on without" in str(w.message)]
    assert len(texts) == 2
    assert "'c' (Conv2D)" in texts[0] and "bias_regularizer, kernel_constraint" in texts[0]
    assert "'n' (BatchNormalization)" in texts[1] and "gamma_regularizer" in texts[1]


# Nested models.


def nested(x):
    inputs = keras.Input(x.shape[1:])
    y = ACBlock(8, activation="relu", name="inner_ac")(inputs)
    y = RepVGGBlock(8, activation="relu", name="inner_vgg")(y)
    x = keras.Model(inputs, y, name="backbone")(x)
    return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.mark.slow
def test_nested_blocks_start_from_the_same_function():
    model = network(nested)
    for mode in ("running", "restored"):
        assert relative(quantize(model, bn_statistics=mode)(X), model(X)) < 0.05


@pytest.mark.slow
def test_nested_models_with_equal_layer_names():
    def twice(x):
        for name in ("first", "second"):
            inputs = keras.Input(x.shape[1:])
            block = ConvBNBlock(3, activation="relu", name="conv")
            x = keras.Model(inputs, block(inputs), name=name)(x)
        return layers.Flatten(name="flat")(x)

    model = network(twice)
    rules = {"second_conv": {"weight_bits": 4}}
    qat = quantize(model, rules=rules)
    assert relative(qat(X), model(X)) < 0.5
    assert find(qat)["first_conv/weight"].bits == 8


def test_relu6_after_a_mean():
    def function(x):
        x = layers.Conv2D(4, 3, name="c")(x)
        x = layers.ReLU(6.0, name="six")(layers.GlobalAveragePooling2D(name="mean")(x))
        return layers.Dense(3, name="logits")(x)

    model = network(function)
    model.get_layer("c").bias.assign([10.0, 20.0, 3.0, -4.0])
    assert relative(quantize(model)(X), model(X)) < 0.05


def test_a_diverged_model_is_named():
    model = network(residual)
    kernel = model.get_layer("ac").weights[2]
    kernel.assign(np.where(np.arange(8) == 2, np.nan, array(kernel)))
    with pytest.raises(ValueError, match="layer 'ac': its merged kernel holds NaN"):
        quantize(model)
