"""`quantize`: the function it starts from, what it keeps, data errors, the table."""

import warnings

import keras
import numpy as np
import PIL.Image
import pytest

import repq_tf
from repq_tf.branches import MODES, BatchNorm
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from repq_tf.quantization.table import largest_gain
from repq_tf.quantizers import find
from tests.quantization.networks import (
    SHAPE,
    array,
    block_of,
    images,
    layers,
    network,
    quantize,
    relative,
    residual,
    settle,
    train,
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


def values(model):
    return [array(v) for v in model.weights]


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


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
    assert (
        equal(values(quantize(model, calibration_data=[X[:20], X[20:]])), values(qat)) is False
    )
    rest = quantize(model, calibration_data=[(X[:20], 1), (X[20:], 2)])
    assert relative(rest(X), qat(X)) < 0.05


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


def stock(x):
    x = layers.Conv2D(8, 3, padding="same", strides=2, use_bias=False, name="c")(x)
    x = layers.BatchNormalization(epsilon=1e-2, name="c_bn")(x)
    x = layers.ReLU(6.0, name="c_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="d1")(x)
    x = layers.BatchNormalization(scale=False, name="d1_bn")(x)
    x = layers.Activation("relu", name="d1_relu")(x)
    x = layers.DepthwiseConv2D((2, 3), depth_multiplier=2, activation="relu", name="d2")(x)
    x = layers.Conv2D(8, 1, groups=4, activation="relu", name="g")(x)
    x = layers.BatchNormalization(center=False, name="p_bn")(layers.Conv2D(8, 1, name="p")(x))
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(layers.Dropout(0.1)(x)))
    x = layers.Dense(12, activation="relu", name="f1")(x)
    return layers.Dense(5, activation="softmax", name="f2")(x)


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


# Dead channels.


@pytest.fixture(scope="module")
def dead():
    """A RepVGG block with an input channel that is exactly 0: its identity's gain is 316.

    Such a channel's other branches see nothing of it, so only the identity suffers.
    """

    def function(x):
        x = ConvBNBlock(8, activation="relu", name="stem")(x)
        x = RepVGGBlock(8, activation="relu", name="vgg")(x)
        x = RepVGGBlock(8, activation="relu", name="after")(x)
        return layers.Dense(5, name="logits")(layers.GlobalAveragePooling2D(name="mean")(x))

    model = network(function)
    stem = model.get_layer("stem").expression
    for variable, value in ((stem.gamma, 0.0), (stem.beta, -1.0)):
        changed = array(variable).copy()
        changed[3] = value
        variable.assign(changed)
    repq_tf.reestimate_batch_norm(model, X)
    return model


def identity_norm(block):
    return block.merged_batch_norms[-1]


def test_the_dead_channel_is_what_it_should_be(dead):
    block = dead.get_layer("vgg")
    features = keras.Model(dead.input, dead.get_layer("stem").output)
    assert array(features(X))[..., 3].max() == 0
    assert array(identity_norm(block).statistics.moving_variance)[3] < 1e-9
    assert 100 < largest_gain(block) < 600  # |gamma| / sqrt(1e-5)


@pytest.mark.slow
def test_neutralisation_keeps_the_function(dead):
    """At 8 bits, and exactly where nothing is rounded."""
    qat = quantize(dead, bn_statistics="running")
    block = qat.get_layer("vgg")
    assert largest_gain(block) < 10
    norm = identity_norm(block)
    gain, shift = (array(v)[3] for v in norm.gain_and_shift())
    source = identity_norm(dead.get_layer("vgg"))
    before = [array(v)[3] for v in source.gain_and_shift()]
    # The channel is 0, so before and after it contributes its shift.
    assert gain == 0 and abs(before[0]) > 100
    np.testing.assert_allclose(shift, before[1], rtol=1e-5, atol=1e-6)
    assert relative(qat(X), dead(X)) < 0.05
    float_rules = {"*": {"weight_bits": None, "activation_bits": None}}
    loose = quantize(dead, bn_statistics="running", rules=float_rules)
    assert relative(loose(X), dead(X)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_dead_channel_survives_4_bits(dead, per_channel):
    options = {"bits": 4, "per_channel": per_channel}
    qat = quantize(dead, **options)
    y = array(qat(X))
    assert np.isfinite(y).all()
    assert np.corrcoef(y.ravel(), array(dead(X)).ravel())[0, 1] > 0.85
    losses = train(qat, X, steps=3) + train(qat, X, steps=3)
    assert np.isfinite(losses).all() and max(losses) < 10
    assert np.isfinite(array(qat(X))).all()


@pytest.mark.slow
def test_without_neutralisation_the_kernel_would_be_ruined(dead, monkeypatch):
    """Max/rms of the whole kernel: about 24 (its maximum, sqrt(576)) instead of about 6."""
    from repq_tf.calibration import batch_norm, steps

    def peak(qat):
        kernel = array(qat.get_layer("vgg").inner.merge().kernel)
        return np.abs(kernel).max() / np.sqrt(np.mean(kernel**2))

    options = {"bits": 4, "per_channel": False}
    good = quantize(dead, **options)
    expected = array(dead(X)).ravel()
    for module in (batch_norm, steps):
        monkeypatch.setattr(module, "neutralise_dead_channels", lambda node: None)
    ruined = quantize(dead, **options)
    print(f"max/rms {peak(ruined):.1f} without, {peak(good):.1f} with neutralisation")
    assert peak(ruined) > 20 and peak(good) < 10
    correlation = [np.corrcoef(array(q(X)).ravel(), expected)[0, 1] for q in (good, ruined)]
    assert correlation[0] > 0.85 and correlation[0] > correlation[1]
    table = repq_tf.quantization_table(ruined)
    assert [w for w in table.warnings if w.startswith("vgg: a batch norm's gain is")]
    assert not repq_tf.quantization_table(good).warnings


@pytest.mark.parametrize("kind", [RepVGGBlock, ConvBNBlock])
def test_a_residual_branch_that_starts_at_zero(kind):
    """All gammas and betas 0, as in networks with zero-initialised residuals."""

    def function(x):
        x = layers.Conv2D(6, 3, activation="relu", name="first")(x)
        return layers.Add(name="add")([x, kind(6, name="zero")(x)])

    model = network(function)
    for norm in model.get_layer("zero").expression.walk():
        if isinstance(norm, BatchNorm):
            norm.gamma.assign(np.zeros(6))
            norm.beta.assign(np.zeros(6))
    assert relative(quantize(model)(X), model(X)) < 0.05


# Calibration data.


PICTURE = PIL.Image.fromarray(np.zeros((10, 10, 3), "uint8"))
BAD_DATA = {
    "None": (None, "must be an array of images or an iterable"),
    "text": ("images", "must be an array of images or an iterable"),
    "number": (3, "must be an array of images or an iterable"),
    "a dict": ({"image": X}, r"Received: a dict; give the images alone, data\[KEY\]"),
    "size": (X[:, :5], r"of images of shape \(10, 10, 3\). Received: .* \(48, 5, 10, 3\)"),
    "channels": (X[..., :1], r"Received: an array of shape \(48, 10, 10, 1\)"),
    "one image": (X[0], r"a single image of shape \(10, 10, 3\); give images\[None\]"),
    "unbatched": (list(X[:3]), r"a single image .* dataset.batch\(32\)"),
    "unbatched pairs": (zip(X[:3], "abc", strict=True), r"dataset.batch\(32\)"),
    "batches of dicts": ([{"image": X}], "a dict with the keys .'image'.; take the images out"),
    "pictures": ([PICTURE] * 2, "pictures of PIL; stack them"),
    "one bad batch": ([X[:4], X[:4, :, :8]], r"Received: an array of shape \(4, 10, 8, 3\)"),
    "no arrays": ([None], "Received: NoneType"),
    "complex": (X + 1j, "must be real numbers"),
    "nothing in them": (X[:, :0], "of shape"),
    "words": (np.full((4, *SHAPE), "a"), "must be real numbers"),
    "NaN": (np.where(X > 2, np.nan, X), "must be finite"),
    "infinity": (np.where(X > 2, np.inf, X), "must be finite"),
    "beyond float32": (X * 1e30, "must be images. Received: values up to"),
    "all zero": (0 * X, "must be images. Received: values that are all 0"),
    "empty": (X[:0], "must not be empty"),
    "no batches": ([], "must not be empty"),
    "an empty batch": ([X[:4], X[:0]], "must not be empty"),
    "exhausted": (iter(()), "must not be empty"),
}


@pytest.mark.parametrize(("data", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_calibration_data(model, data, message):
    before = values(model)
    for function in (repq_tf.quantize, repq_tf.reestimate_batch_norm):
        if isinstance(data, zip | type(iter(()))):
            data = zip(X[:3], "abc", strict=True) if isinstance(data, zip) else iter(())
        with pytest.raises(ValueError, match=message):
            if function is repq_tf.quantize:
                function(model, calibration_data=data, verbose=False)
            else:
                function(model, data)
    assert equal(values(model), before)


class Sequence(keras.utils.PyDataset):
    """It does not end by itself when it is iterated over."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index * 24 : index * 24 + 24] if index < 2 else X[:0], np.zeros(24)


@pytest.mark.slow
def test_every_kind_of_calibration_data(tiny):
    import tensorflow as tf
    import torch.utils.data

    expected = values(quantize(tiny, calibration_data=[X[:24], X[24:]]))
    labels = np.zeros(len(X))
    dataset = tf.data.Dataset.from_tensor_slices((X, labels)).batch(24)
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(labels))
    kinds = [
        dataset,
        (batch for batch in (X[:24], X[24:])),
        [tf.constant(X[:24]), X[24:]],
        [(X[:24], labels[:24]), (X[24:], labels[24:])],
        Sequence(),
        torch.utils.data.DataLoader(pairs, batch_size=24),
    ]
    for data in kinds:
        assert equal(values(quantize(tiny, calibration_data=data)), expected)
    whole = values(quantize(tiny, calibration_data=X))
    for data in ((X, labels), (tf.constant(X), labels, labels)):
        assert equal(values(quantize(tiny, calibration_data=data)), whole)


@pytest.mark.slow
def test_as_many_images_are_read_as_asked_for(tiny, capsys):
    """Of an array at equal distances, since it may be sorted; of an iterable the first."""
    import tensorflow as tf

    def endless():
        while True:
            yield X[:16]

    expected = values(quantize(tiny, calibration_data=X[::3]))
    options = {"calibration_images": 16}
    assert equal(values(quantize(tiny, calibration_data=X, **options)), expected)
    expected = values(quantize(tiny, calibration_data=X[:16]))
    repeated = tf.data.Dataset.from_tensor_slices(X).batch(16).repeat()
    for data in (endless(), repeated, [X[:16], X], (part for part in [X])):
        assert equal(values(quantize(tiny, calibration_data=data, **options)), expected)
    repq_tf.quantize(tiny, calibration_data=endless())
    assert "calibrated on 512 images" in capsys.readouterr().out
    repq_tf.reestimate_batch_norm(tiny, endless())
    with pytest.raises(ValueError, match=r"a dataset that repeats; add .take\(n\)"):
        quantize(tiny, calibration_data=repeated, calibration_images=None)
    for count in (0, 1.5, "8", True):
        with pytest.raises(ValueError, match="calibration_images must be a positive whole"):
            quantize(tiny, calibration_data=X, calibration_images=count)


@pytest.mark.slow
def test_images_of_another_range_than_in_training_are_noticed(model):
    raw = np.random.default_rng(0).integers(0, 256, X.shape)
    for network_of in (model, network(lambda x: RepVGGBlock(4, name="vgg")(x))):
        with pytest.warns(UserWarning, match="are .* times as large as those that its batch"):
            quantize(network_of, calibration_data=raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantize(model, calibration_data=2 * X + 1)


def test_whole_numbers_are_read_as_they_are(tiny):
    data = np.clip(np.rint(X * 20), 0, 255)
    one = quantize(tiny, calibration_data=data.astype("uint8"))
    assert equal(values(one), values(quantize(tiny, calibration_data=data)))
    assert not one.get_layer("image_quantize").signed


@pytest.mark.slow
def test_a_shared_step_is_found_from_all_channels_of_each():
    """A stride that suits the values of all tensors together may skip channels of one."""
    data = np.random.default_rng(0).normal(size=(140, 32, 32, 16)).astype("float32")
    data[..., 7:] *= 0.05
    data[..., 15] *= 200  # the loudest of 9
    image = keras.Input(data.shape[1:], name="image")
    parts = keras.layers.Concatenate(name="both")(
        [
            ConvBNBlock(count, 1, kernel_initializer="zeros", name=f"conv{count}")(image)
            for count in (7, 9)
        ]
    )
    model = keras.Model(image, parts)
    for first, count in ((0, 7), (7, 9)):
        kernel = model.get_layer(f"conv{count}").inner.kernel
        kernel.assign(np.eye(16, dtype="float32")[None, None, :, first : first + count])
    qat = repq_tf.quantize(model, bits=8, calibration_data=data, verbose=False)
    (shared,) = {
        id(q): q for name, q in find(qat).items() if name.startswith("conv7_q")
    }.values()

    def error(step):
        levels = np.clip(np.rint(data / step), shared.low, shared.high)
        return np.mean((levels * step - data) ** 2)

    best = min(map(error, np.geomspace(0.02, 1, 100)))
    assert error(float(shared.step)) < 1.05 * best


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 3, 8])
def test_steps_are_found_from_all_channels(channels):
    """Of more values than are looked at, too: among them the loudest channel's."""
    data = np.random.default_rng(0).normal(size=(1024, 16, 16, channels)).astype("float32")
    data[..., :-1] *= 0.05  # all but the last are quiet
    image = keras.Input(data.shape[1:], name="image")
    model = keras.Model(image, ConvBNBlock(1, 1, name="conv")(image))
    qat = repq_tf.quantize(
        model,
        calibration_data=data,
        rules={"image*": {"activation_bits": 4}},
        verbose=False,
    )
    steps = np.geomspace(0.05, 1, 100)
    errors = [np.mean((np.clip(np.rint(data / s), -8, 7) * s - data) ** 2) for s in steps]
    step = float(find(qat)["image_quantize/activation"].step)
    found = np.mean((np.clip(np.rint(data / step), -8, 7) * step - data) ** 2)
    assert found < 1.02 * min(errors)


def test_a_diverged_model_is_named():
    model = network(residual)
    kernel = model.get_layer("ac").weights[2]
    kernel.assign(np.where(np.arange(8) == 2, np.nan, array(kernel)))
    with pytest.raises(ValueError, match="layer 'ac': its merged kernel holds NaN"):
        quantize(model)


# The table.


def test_the_table(model, capsys):
    qat = repq_tf.quantize(
        model,
        bits=4,
        rules={"vgg": {"per_channel": False}, "ac": {"activation_bits": 6}},
        calibration_data=X,
    )
    printed = capsys.readouterr().out
    table = repq_tf.quantization_table(qat)
    assert printed == f"{table}\ncalibrated on 48 images\n"
    rows = {row.name: (row.kind, row.weight, row.output) for row in table.rows}
    assert rows == {
        "image": ("InputLayer", "", "8 bits, signed"),
        "stem": ("ConvBNBlock", "8 bits, per channel", "4 bits, unsigned"),
        "ac": ("ACBlock", "4 bits, per channel", "6 bits, unsigned"),
        "vgg": ("RepVGGBlock", "4 bits, per tensor", "4 bits, signed"),
        "add": ("QuantizedAdd", "", "4 bits, unsigned"),
        "mean": ("QuantizedMean", "", "8 bits, unsigned"),
        "logits": ("DenseBlock", "8 bits, per channel", "8 bits, signed"),
    }
    for name in (*rows, "BN gain:", "max/rms:"):
        assert any(line.startswith(f"{name} ") for line in printed.splitlines())
    by_name = {row.name: row for row in table.rows}
    for name in ("ac", "vgg"):
        norms = qat.get_layer(name).merged_batch_norms
        gains = [
            np.abs(array(n.gamma)) / np.sqrt(array(n.statistics.moving_variance) + 1e-5)
            for n in norms
        ]
        np.testing.assert_allclose(by_name[name].gain, np.max(gains), rtol=1e-5)
    assert by_name["stem"].gain is None and by_name["add"].peak is None
    kernel = array(qat.get_layer("vgg").inner.merge().kernel)
    rms = np.sqrt(np.mean(kernel**2))
    np.testing.assert_allclose(by_name["vgg"].peak, np.abs(kernel).max() / rms, rtol=1e-5)
    kernel = array(qat.get_layer("ac").inner.merge().kernel).reshape(-1, 8)
    worst = (np.abs(kernel).max(0) / np.sqrt(np.mean(kernel**2, 0))).max()
    np.testing.assert_allclose(by_name["ac"].peak, worst, rtol=1e-5)


def test_the_table_says_what_was_skipped_and_why():
    def function(x):
        x = layers.MaxPooling2D(2, name="pool")(layers.Conv2D(4, 3, name="c")(x))
        x = layers.Conv2D(4, 3, name="loose", activation="relu")(x)
        return layers.Flatten(name="flat")(x)

    rules = {"loose": {"weight_bits": None, "activation_bits": None}}
    table = repq_tf.quantization_table(quantize(network(function), rules=rules))
    rows = {row.name: (row.weight, row.output) for row in table.rows}
    assert rows["pool"] == ("", "none: shares its input's scale")
    assert rows["loose"] == ("floating point", "floating point")


@pytest.mark.parametrize("bits", [8, 4])
def test_the_table_warns_of_kernels_with_outliers(bits):
    """One tap of 1 among 0.01: max/rms near its greatest value, sqrt(27 * 8 * 9)."""

    def function(x):
        x = layers.Conv2D(24, 3, activation="relu", name="first")(x)
        return layers.Conv2D(4, 3, name="last")(layers.Conv2D(24, 3, name="spiky")(x))

    model = network(function)
    kernel = np.full((3, 3, 24, 24), 0.001, "float32")
    kernel[1, 1, 0, 5] = 1.0
    model.get_layer("spiky").kernel.assign(kernel)
    qat = quantize(model, bits=bits)
    peak = {row.name: row.peak for row in repq_tf.quantization_table(qat).rows}["spiky"]
    np.testing.assert_allclose(peak, 1 / np.sqrt((1 + 215e-6) / 216), rtol=1e-5)  # 14.7
    assert not repq_tf.quantization_table(qat).warnings
    # Per tensor it stands among 24 times as many: 72, too much for 4 bits and not for 8.
    table = repq_tf.quantization_table(quantize(model, bits=bits, per_channel=False))
    warning = "spiky: max/rms of the merged kernel is 71.8, much for 4 bits"
    assert [w.startswith(warning) for w in table.warnings] == ([True] if bits == 4 else [])


# Batch-norm statistics.


def numpy_moments(y):
    y = array(y).astype("float64").reshape(-1, y.shape[-1])
    return y.mean(0), y.var(0)


def test_reestimated_stock_batch_norm_has_the_moments_of_its_input():
    model = network(stock, seed=4)
    for name in ("c_bn", "d1_bn", "p_bn"):
        norm = model.get_layer(name)
        norm.moving_mean.assign(np.full(norm.moving_mean.shape, 7.0))
        norm.moving_variance.assign(np.full(norm.moving_mean.shape, 9.0))
    kept = {v.path: array(v) for v in model.trainable_variables}
    repq_tf.reestimate_batch_norm(model, X, batch_size=20)  # 20, 20 and 8 images
    for name in ("c_bn", "d1_bn", "p_bn"):
        norm = model.get_layer(name)
        mean, variance = numpy_moments(keras.Model(model.input, norm.input)(X))
        np.testing.assert_allclose(array(norm.moving_mean), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(array(norm.moving_variance), variance, rtol=1e-4)
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(array(variable), kept[variable.path])


def test_moments_of_half_precision_features_are_found_in_float32():
    """A variance above 65504 is none that float16 holds."""
    image = keras.Input((4, 4, 2))
    half = keras.layers.Activation("linear", dtype="mixed_float16")(image)
    norm = keras.layers.BatchNormalization(dtype="mixed_float16")
    model = keras.Model(image, norm(half))
    data = np.random.default_rng(0).normal(0, 1000, (64, 4, 4, 2)).astype("float16")
    repq_tf.reestimate_batch_norm(model, data)
    mean, variance = numpy_moments(data.astype("float64"))
    assert (variance > 65504).all()
    np.testing.assert_allclose(array(norm.moving_mean), mean, rtol=1e-3)
    np.testing.assert_allclose(array(norm.moving_variance), variance, rtol=1e-3)


def assert_moments(norm, mean, variance):
    moving = norm.statistics
    np.testing.assert_allclose(array(moving.moving_mean), mean, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(moving.moving_variance), variance, rtol=1e-4)


def branch_moments(block, x):
    """Moments of what each batch norm of a sum normalizes, run branch by branch."""
    from tests.reference import convolution

    found = []
    for norm in block.merged_batch_norms:
        affine = norm.child.merge()
        offset = [(o - i) // 2 for o, i in zip(block.kernel_size, affine.size, strict=True)]
        window = [(1 - o, 1 - o) for o in offset]
        groups = affine.groups
        y = convolution(array(x), array(affine.kernel), None, groups, block.strides, window)
        found.append(numpy_moments(y))
    return found


@pytest.mark.parametrize("kind", ["float", "merged", "quantized 8", "quantized 3"])
@pytest.mark.parametrize("strides", [1, 2])
def test_reestimated_blocks_have_the_moments_of_their_branches(kind, strides):
    keras.utils.set_random_seed(5)
    options = {"padding": 1, "strides": strides, "activation": "relu", "name": "b"}
    if kind == "merged":
        options["merged"] = True
    for block_class in (ACBlock, RepVGGBlock):
        inputs = keras.Input(SHAPE, name="image")
        model = settle(keras.Model(inputs, block_class(3, **options)(inputs)))
        x = X
        if kind.startswith("quantized"):
            model = quantize(
                model, bits=int(kind[-1]), rules={"b": {"weight_bits": int(kind[-1])}}
            )
            x = model.get_layer("image_quantize")(X)[0]
        block = block_of(model, "b")
        for variable in block.non_trainable_variables:
            if "moving" in variable.path:
                variable.assign(np.full(variable.shape, 3.0))
        repq_tf.reestimate_batch_norm(model, X, batch_size=20)
        for norm, found in zip(block.merged_batch_norms, branch_moments(block, x), strict=True):
            if kind.startswith("quantized"):  # what its kernel was trained with stays
                found = np.full((2, 3), 3.0)
            assert_moments(norm, *found)
        if block.restored is not None:
            # It normalizes the output of the kernel as it is: quantized, if it is.
            from tests.reference import convolution

            affine = block.inner.merge()
            kernel = affine.kernel
            if block.weight_quantizer is not None:
                kernel = block.weight_quantizer(kernel)
            y = convolution(
                array(x), array(kernel), array(affine.bias), 1, block.strides, [(1, 1)] * 2
            )
            mean, variance = numpy_moments(y)
            statistics = block.restored.statistics
            np.testing.assert_allclose(
                array(statistics.moving_mean), mean, rtol=1e-4, atol=1e-4
            )
            np.testing.assert_allclose(array(statistics.moving_variance), variance, rtol=1e-4)


def test_the_float_branches_of_an_estimate_model_get_true_moments():
    """Run branch by branch, they were trained with batch moments, whatever the mode."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input(SHAPE, name="image")
    block = ACBlock(3, padding=1, bn_statistics="estimate", name="b")
    model = settle(keras.Model(inputs, block(inputs)))
    for norm, found in zip(block.merged_batch_norms, branch_moments(block, X), strict=True):
        assert_moments(norm, *found)
    assert model.built


def test_reestimation_after_training_brings_inference_to_training():
    """With momentum 0.9 a few steps leave the moving statistics far behind."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input(SHAPE, name="image")
    model = keras.Model(inputs, residual(inputs))
    target = array(model(X, training=True))
    for variable in model.non_trainable_variables:
        variable.assign(np.full(variable.shape, 2.0))
    assert relative(model(X), target) > 0.3
    repq_tf.reestimate_batch_norm(model, X)
    assert relative(model(X), target) < 1e-3


def test_reestimation_of_a_quantized_model_is_idempotent(model):
    qat = quantize(model, bits=4)
    repq_tf.reestimate_batch_norm(qat, X)
    before = values(qat)
    repq_tf.reestimate_batch_norm(qat, X)
    for variable, value in zip(qat.weights, before, strict=True):
        np.testing.assert_allclose(
            array(variable), value, rtol=1e-4, atol=1e-5, err_msg=variable.path
        )
