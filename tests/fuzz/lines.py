"""Random small networks of one-dimensional features: of sounds and of sensors."""

import keras

from tests.fuzz import draws as st

layers = keras.layers

ACTIVATIONS = st.sampled_from((None, None, "relu", "relu6", "hard_silu", "tanh"))
PADDINGS = st.sampled_from(("same", "valid"))


def _convolution(draw, x):
    options = {
        "padding": draw(PADDINGS),
        "activation": draw(ACTIVATIONS),
        "use_bias": draw(st.booleans()),
        **draw(st.sampled_from(({}, {}, {"strides": 2}, {"dilation_rate": 2}))),
    }
    size = draw(st.sampled_from((1, 3, 4)))
    kind = draw(st.sampled_from(("Conv1D", "Conv1D", "DepthwiseConv1D", "SeparableConv1D")))
    if kind == "Conv1D" and draw(st.integers(0, 2)) == 2:
        options["padding"] = "causal"
    if kind == "Conv1D" and x.shape[-1] % 2 == 0 and draw(st.booleans()):
        return layers.Conv1D(2 * draw(st.integers(1, 3)), size, groups=2, **options)(x)
    if kind == "DepthwiseConv1D":
        return layers.DepthwiseConv1D(
            size, depth_multiplier=draw(st.integers(1, 2)), **options
        )(x)
    return getattr(layers, kind)(draw(st.integers(2, 6)), size, **options)(x)


def _other(draw, x):
    return draw(
        st.sampled_from(
            (
                lambda: layers.BatchNormalization(),
                lambda: layers.ReLU(),
                lambda: layers.LeakyReLU(0.1),
                lambda: layers.MaxPooling1D(2),
                lambda: layers.AveragePooling1D(3, strides=1, padding="same"),
                lambda: layers.ZeroPadding1D((1, 2)),
                lambda: layers.Cropping1D((0, 1)),
                lambda: layers.UpSampling1D(2),
                lambda: layers.SpatialDropout1D(0.1),
                lambda: layers.Dense(3, activation="relu"),
            )
        )
    )()(x)


def _pair(draw, x):
    y = layers.Conv1D(x.shape[-1], 3, padding="same", activation=draw(ACTIVATIONS))(x)
    kind = draw(st.sampled_from(("Add", "Multiply", "Concatenate")))
    return getattr(layers, kind)()([x, y])


def line_network(draw):
    """A Functional model of lines; `draw` from `draws.drawing`."""
    x = inputs = keras.Input((draw(st.sampled_from((12, 17))), draw(st.integers(1, 3))))
    for _ in range(draw(st.integers(2, 5))):
        part = draw(st.sampled_from((_convolution, _convolution, _other, _pair)))
        if x.shape[1] >= 7:
            x = part(draw, x)
    ending = draw(st.sampled_from(("none", "mean", "max", "flat")))
    if ending == "none":
        return keras.Model(inputs, x)
    kinds = {"mean": layers.GlobalAveragePooling1D, "max": layers.GlobalMaxPooling1D}
    x = kinds.get(ending, layers.Flatten)()(x)
    return keras.Model(inputs, layers.Dense(3)(x))
