"""The callbacks of users' own `fit`."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.branches import BatchNorm
from tests.quantization.networks import array, every_layer, images, network, quantize, residual

X, Y = images(16), np.zeros((16, 5))


def fit(model, *callbacks, epochs=2):
    model.compile(keras.optimizers.SGD(0.01), "mse")
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
