"""Channels that are constant: their huge gains are taken out of quantized kernels."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm
from repq_tf.layers import ConvBNBlock, RepVGGBlock
from repq_tf.quantization.table import largest_gain
from tests.quantization.networks import (
    array,
    images,
    layers,
    network,
    quantize,
    relative,
    train,
)

X = images()


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
