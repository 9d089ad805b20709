"""Steps are found from values of all channels."""

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ConvBNBlock
from repq_tf.quantizers import find
from tests.quantization.networks import (
    images,
)

X = images()


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
