"""The callbacks of users' own `fit`."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm, Identity
from repq_tf.layers import ACBlock, RepVGGBlock
from tests.quantization.networks import array, every_layer, images, network, quantize, residual

X, Y = images(16), np.zeros((16, 5))


def fit(model, *callbacks, epochs=2):
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks))


@pytest.mark.slow(4)
def test_steps_and_clip_rates_are_among_the_logs(tmp_path):
    qat = quantize(network(residual), bits=3)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(qat, repq_tf.callbacks.QuantizationMonitor(X[:8]), log).history
    found = [layer for layer in qat.layers if isinstance(layer, repq_tf.layers.Quantize)]
    for layer in found:
        steps = history[f"{layer.name}/step"]
        assert steps[-1] == pytest.approx(float(layer.step)) and len(set(steps)) == 2
    for name, rate in repq_tf.quantization.clip_rates(qat, X[:8]).items():
        assert history[f"{name}_clipped"][-1] == pytest.approx(rate, abs=1e-6)
    assert {"ac/weight_clipped", "stem/weight_step"} <= set(history)
    assert "image_quantize/step" in (tmp_path / "log.csv").read_text().splitlines()[0]


@pytest.mark.slow(4)
def test_batch_norms_keep_their_statistics_from_an_epoch_on():
    qat = quantize(network(residual))
    seen = []

    def means():
        norms = [node for node in every_layer(qat) if isinstance(node, BatchNorm)]
        return [array(node.statistics.moving_mean) for node in norms]

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(means())

    start = means()
    fit(qat, repq_tf.callbacks.FreezeBatchNorm(1), Watch(), epochs=3)
    first, second, third = seen
    assert any((a != b).any() for a, b in zip(start, first, strict=True))
    assert all((a == b).all() for a, b in zip(second, third, strict=True))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert qat.get_layer("stem").bn_statistics == "running"


@pytest.mark.parametrize("epoch", [-1, 1.5, True])
def test_a_bad_epoch_is_refused(epoch):
    with pytest.raises(ValueError, match="epoch must be a whole number"):
        repq_tf.callbacks.FreezeBatchNorm(epoch)


def chain(block=RepVGGBlock, **options):
    inputs = keras.Input(X.shape[1:])
    x = keras.layers.Conv2D(6, 3, name="stem")(inputs)
    for name in ("first", "second"):
        x = block(6, 3, padding="same", activation="relu", name=name, **options)(x)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))


class Centres(keras.callbacks.Callback):
    """Notes how large the identities' taps are, after each epoch and in training."""

    def __init__(self, model):
        super().__init__()
        self.blocks = [model.get_layer(name) for name in ("first", "second")]
        self.norms = [
            node
            for block in self.blocks
            for node in block.expression.walk()
            if isinstance(node, BatchNorm) and isinstance(node.child, Identity)
        ]
        self.gains, self.last = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.gains.append([np.abs(array(norm.gamma)).mean() for norm in self.norms])

    def on_epoch_end(self, epoch, logs=None):
        self.last.append([np.abs(array(norm.gain_and_shift())).max() for norm in self.norms])


@pytest.mark.slow(10)
@pytest.mark.parametrize("distilled", [False, True])
def test_identities_are_annealed_and_stay_away(distilled):
    model = chain()
    teacher = chain() if distilled else None
    learner = repq_tf.Distiller(model, teacher) if distilled else model
    centres = Centres(model)
    fit(learner, repq_tf.callbacks.AnnealIdentities(4), centres, epochs=6)
    # Training moves gammas, which begin at 1, a little between.
    for gains, expected in zip(centres.gains, (0.75, 0.5, 0.25, 0, 0, 0), strict=True):
        np.testing.assert_allclose(gains, expected, atol=0.12 if expected else 0)
    assert np.all(centres.last[2]) and not np.any(centres.last[3:])
    # Nothing of them is in the kernels, and another training does not bring them back first.
    for block in centres.blocks:
        square, pointwise, _ = block.expression.children
        kernels = [node.merge().kernel for node in (square, pointwise)]
        without = array(kernels[0])
        without[1, 1] += array(kernels[1])[0, 0]
        np.testing.assert_allclose(
            array(repq_tf.merge(model).get_layer(block.name).kernel), without, atol=1e-6
        )


def test_without_identities_nothing_can_be_annealed():
    for model in (chain(ACBlock), chain(use_batch_norm=False)):
        with pytest.raises(ValueError, match="has no identity branch with a batch norm"):
            fit(model, repq_tf.callbacks.AnnealIdentities(2))
    with pytest.raises(ValueError, match="epochs must be a positive whole number"):
        repq_tf.callbacks.AnnealIdentities(0)


@pytest.mark.slow(10)
def test_a_distillers_student_is_watched():
    model = network(residual)
    qat = quantize(model)
    monitor = repq_tf.callbacks.QuantizationMonitor(X[:8])
    freeze = repq_tf.callbacks.FreezeBatchNorm(1)
    history = fit(repq_tf.Distiller(qat, model), monitor, freeze).history
    assert {"ac/weight_clipped", "stem/weight_step"} <= set(history)
    assert qat.get_layer("stem").bn_statistics == "running"
