import pytest

from repq_tf.keras_api import keras
from repq_tf.layers import SqueezeExcite
from repq_tf.tfmot import RepQScheme
from tests.tfmot.networks import annotate, apply

layers = keras.layers


def conv(x, **options):
    return layers.Conv2D(4, 3, **options)(x)


REFUSED = {
    "product": lambda x: layers.Multiply(name="bad")([conv(x), conv(x)]),
    "sigmoid": lambda x: conv(layers.Activation("sigmoid", name="bad")(conv(x))),
    "hard sigmoid": lambda x: conv(layers.Activation("hard_sigmoid", name="bad")(conv(x))),
    "swish": lambda x: conv(layers.Activation("swish", name="bad")(conv(x))),
    "squeeze": lambda x: conv(SqueezeExcite(2, name="bad")(conv(x))),
    "leaky": lambda x: conv(layers.LeakyReLU(0.1, name="bad")(conv(x))),
    "average": lambda x: conv(layers.AveragePooling2D(2, name="bad")(conv(x))),
    "resize": lambda x: conv(layers.UpSampling2D(2, name="bad")(conv(x))),
    "prelu": lambda x: conv(layers.PReLU(shared_axes=[1, 2], name="bad")(conv(x))),
}


def test_levels_that_need_more_than_tfmot_has_are_refused():
    for options in (
        {"weight_levels": "odd"},
        {"wide_tap": True},
        {"weight_levels": "cluster"},
        {"rules": {"x": {"weight_levels": "cluster"}}},
        {"rules": {"x": {"wide_tap": "auto"}}},
    ):
        with pytest.raises(ValueError, match="under TFMOT|calibration_data must be given"):
            RepQScheme(**options)


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED.keys())
def test_what_tfmot_cannot_compute_is_refused_by_name(function):
    x = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match=r"layer 'bad.*quantize the model with repq_tf"):
        apply(annotate(keras.Model(x, function(x))), RepQScheme())
