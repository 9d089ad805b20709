"""Random small networks: the parts that are taken, and some that are refused."""

import keras
import numpy as np
from keras import ops

from tests.fuzz import draws as st
from tests.fuzz.lines import line_network
from tests.fuzz.parts import PARTS

layers = keras.layers

# Refused by name, with settings that are refused among the convolutions' below.
UNSUPPORTED = [
    lambda draw: layers.PReLU(),
    lambda draw: layers.UpSampling2D(2, interpolation="bicubic"),
    lambda draw: layers.LayerNormalization(),
    lambda draw: layers.Conv2DTranspose(4, 3, strides=(1, 2)),
    lambda draw: layers.GroupNormalization(1),
]


def _unsupported(draw, x):
    return draw(st.sampled_from(UNSUPPORTED))(draw)(x)


def _prepared(draw, x):
    """What models do with pixels before anything else."""
    means = np.linspace(90, 140, x.shape[-1]).astype("float32")
    return draw(
        st.sampled_from(
            (
                layers.Rescaling(1 / 127.5, -1),
                layers.Rescaling(1 / 255),
                layers.Normalization(mean=means, variance=(means / 2) ** 2),
                lambda x: x / 127.5 - 1.0,
                lambda x: (x[..., ::-1] - means) / 64.0,
                lambda x: layers.RandomFlip("horizontal")(layers.Rescaling(1 / 128)(x)),
            )
        )
    )(x)


def network(draw):
    """A Functional model of two to five parts and an ending; `draw` from `draws.drawing`.

    One whose input is named "pixels" prepares them itself.
    """
    if draw(st.integers(0, 9)) == 9:
        return line_network(draw)
    side = draw(st.sampled_from((8, 9, 12)))
    shape = (side, side + draw(st.integers(0, 1)), draw(st.integers(1, 3)))
    pixels = draw(st.integers(0, 5)) == 5
    x = inputs = keras.Input(shape, name="pixels" if pixels else None)
    if pixels:
        x = _prepared(draw, x)
    elif draw(st.integers(0, 9)) == 9:
        inputs = [x, keras.Input((*shape[:2], 2))]
        x = layers.Concatenate()(inputs)
    parts = PARTS + ([_unsupported] if draw(st.integers(0, 9)) == 9 else [])
    for _ in range(draw(st.integers(2, 5))):
        part = draw(st.sampled_from(parts))
        if min(x.shape[1:3]) >= 5:
            x = part(draw, x)
    return keras.Model(inputs, _ended(draw, x))


def _ended(draw, x):
    """Behind features of pixels: nothing, or classes."""
    ending = draw(
        st.sampled_from(("none", "mean", "max", "flat", "normalized", "softmax", "unit"))
    )
    if ending == "none":
        return x
    if ending == "flat":
        activation = draw(st.sampled_from((None, "relu", "gelu")))
        return layers.Dense(4, activation=activation)(layers.Flatten()(x))
    kind = layers.GlobalMaxPooling2D if ending == "max" else layers.GlobalAveragePooling2D
    x = layers.Dense(3)(kind()(x))
    if ending == "normalized":
        x = layers.Dense(2)(layers.ReLU()(layers.BatchNormalization()(x)))
    if ending == "unit":
        return draw(st.sampled_from((layers.UnitNormalization(), ops.normalize)))(x)
    return layers.Softmax()(x) if ending == "softmax" else x
