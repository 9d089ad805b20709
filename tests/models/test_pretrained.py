"""Weights that networks come with: how they are written and read, and names."""

import keras
import numpy as np
import pytest

from repq_tf import models
from repq_tf.models import pretrained


@pytest.mark.parametrize("function", [models.model_card, models.pretrained_tflite])
def test_names_are_known(function):
    with pytest.raises(ValueError, match="weights of ac_resnet18 must be None.* 'cifar10'"):
        function("ac_resnet18", "cifar10")
    with pytest.raises(ValueError, match="name must be one of: .*Received: 'resnet9'"):
        function("resnet9", "cifar10")


def test_other_networks_come_with_none():
    with pytest.raises(ValueError, match="weights of ac_resnet8 must be None, no weights come"):
        models.ac_resnet8(weights="cifar10")


def test_weights_are_written_as_they_are_read(tmp_path):
    """Of a network in another precision, too."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trained = models.ac_resnet8(10, (32, 32, 3), 0.5)
    finally:
        keras.config.set_dtype_policy("float32")
    model = models.ac_resnet8(10, (32, 32, 3), 0.5)
    pretrained.save_weights(trained, tmp_path / "weights.npz")
    pretrained.load_weights(model, tmp_path / "weights.npz")
    for one, other in zip(model.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_another_network_change_nothing(tmp_path):
    pretrained.save_weights(models.ac_resnet8(10, (8, 8, 3)), tmp_path / "ac_resnet8.npz")
    model = models.resnet8(10, (8, 8, 3))
    before = model.get_weights()
    with pytest.raises(ValueError, match="those of ac_resnet8 are .* Received: 48 weights for"):
        pretrained.load_weights(model, tmp_path / "ac_resnet8.npz")
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
