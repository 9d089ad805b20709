"""Random small networks: blocks of the library, stock layers, and some that it refuses."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

from repq_tf import layers as blocks
from tests.zoo import BLOCKS

layers = keras.layers

# Refused by name, with settings that are refused among the convolutions' below.
UNSUPPORTED = [
    lambda draw: layers.PReLU(),
    lambda draw: layers.UpSampling2D(2, interpolation="bicubic"),
    lambda draw: layers.LayerNormalization(),
    lambda draw: layers.Conv2DTranspose(4, 3, strides=(1, 2)),
    lambda draw: layers.GroupNormalization(1),
]

GATES = ("silu", "hard_silu", "sigmoid", "hard_sigmoid")
ACTIVATIONS = st.sampled_from((None, None, "relu", "relu", "relu6", *GATES))
PADDINGS = st.sampled_from(("same", "valid"))


def _block(draw, x):
    name = draw(st.sampled_from(sorted(BLOCKS)))
    channels = x.shape[-1]
    options = {
        "activation": draw(ACTIVATIONS),
        "padding": draw(st.sampled_from(("same", "valid", 1, ((0, 1), (2, 0))))),
        "strides": draw(st.sampled_from((1, 1, 2))),
    }
    if name == "ECB":
        options["identity"] = False
    filters = draw(st.sampled_from((channels, 4, 6)))
    return getattr(blocks, name)(filters, **{**BLOCKS[name], **options})(x)


def _convolution(draw, x):
    channels = x.shape[-1]
    options = {
        "padding": draw(PADDINGS),
        "strides": draw(st.sampled_from((1, 1, 2))),
        "use_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from((None, None, None, "relu", "relu", "tanh"))),
    }
    if options["strides"] == 1:
        options["dilation_rate"] = draw(st.sampled_from((1, 1, 1, 1, 1, 2)))
    size = draw(st.sampled_from((1, 3, (2, 3))))
    if options.get("dilation_rate") == 2:
        options["padding"] = "same"  # for small images too
    if draw(st.booleans()):
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
        layer = layers.Conv2D(groups * draw(st.integers(1, 3)), size, groups=groups, **options)
    else:
        depth = draw(st.integers(1, 2))
        layer = layers.DepthwiseConv2D(size, depth_multiplier=depth, **options)
    x = layer(x)
    if options["activation"] is None and draw(st.booleans()):
        x = layers.BatchNormalization(center=draw(st.booleans()), scale=draw(st.booleans()))(x)
    return x


def _residual(draw, x):
    kind = draw(st.sampled_from(("ACBlock", "RepVGGBlock", "OREPABlock")))
    y = getattr(blocks, kind)(x.shape[-1], activation=draw(ACTIVATIONS))(x)
    x = layers.Add()([x, y])
    return layers.ReLU()(x) if draw(st.booleans()) else x


def _concatenation(draw, x):
    y = blocks.ConvBNBlock(draw(st.integers(1, 4)), activation=draw(ACTIVATIONS))(x)
    return layers.Concatenate()([x, y])


def _other(draw, x):
    layer = draw(
        st.sampled_from(
            (
                layers.ReLU,
                lambda: layers.ReLU(6.0),
                lambda: layers.MaxPooling2D(2, padding="same"),
                lambda: layers.AveragePooling2D(2, padding="valid"),
                lambda: layers.ZeroPadding2D(((1, 0), (0, 1))),
                lambda: layers.Dropout(0.3),
                lambda: layers.UpSampling2D((1, 2)),
                lambda: layers.UpSampling2D(2, interpolation="bilinear"),
            )
        )
    )
    return layer()(x)


def _activation(draw, x):
    slope = draw(st.sampled_from((0.01, 0.1, 0.3)))
    start = keras.initializers.RandomUniform(-0.5, 1.5)
    layer = draw(
        st.sampled_from(
            (
                lambda: layers.LeakyReLU(slope),
                lambda: layers.ReLU(negative_slope=slope),
                lambda: layers.PReLU(start, shared_axes=[1, 2]),
                lambda: layers.PReLU(start, shared_axes=[1, 2]),
                *(lambda f=f: layers.Activation(f) for f in GATES),
            )
        )
    )
    return layer()(x)


def _gate(draw, x):
    kind = draw(st.sampled_from(("squeeze", "hard", "pixels", "product")))
    channels = x.shape[-1]
    if kind == "squeeze":
        y = blocks.SqueezeExcite(draw(st.integers(1, 3)))(x)
    elif kind == "hard":
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Multiply()([layers.Conv2D(channels, 1, activation="hard_sigmoid")(y), x])
    elif kind == "pixels":
        y = layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(x)])
    else:
        y = layers.Multiply()([x, layers.Conv2D(channels, 1, activation=draw(ACTIVATIONS))(x)])
    return layers.ReLU()(y) if draw(st.booleans()) else y


FUNCTIONS = ("tanh", "elu", "gelu", "selu", "softplus", "mish", "softsign", "exponential")


def _function(draw, x):
    return layers.Activation(draw(st.sampled_from(FUNCTIONS)))(x)


def _of_channels(draw, x):
    """Batch norms and constants anywhere."""
    constant = np.linspace(-1.5, 2, x.shape[-1]).astype("float32")
    x = draw(
        st.sampled_from(
            (
                lambda x: layers.BatchNormalization()(x),
                lambda x: layers.BatchNormalization(scale=False)(layers.ReLU()(x)),
                lambda x: layers.Normalization(mean=0.3, variance=2.0)(x),
                lambda x: x * constant,
                lambda x: 1.5 - x,
                lambda x: x / (constant + 2.0) + constant,
                lambda x: ops.relu6(x + 3.0) * x / 6.0,
            )
        )
    )(x)
    return layers.ReLU()(x) if draw(st.booleans()) else x


def _separable(draw, x):
    layer = layers.SeparableConv2D(
        draw(st.integers(1, 5)),
        draw(st.sampled_from((1, 3, (2, 3)))),
        strides=draw(st.sampled_from((1, 1, 2))),
        padding=draw(PADDINGS),
        depth_multiplier=draw(st.integers(1, 2)),
        activation=draw(ACTIVATIONS),
    )
    return layer(x)


def _transposed(draw, x):
    x = layers.Conv2DTranspose(
        draw(st.integers(1, 5)),
        draw(st.sampled_from((1, 2, 3, 4, (2, 3)))),
        strides=draw(st.sampled_from((1, 2, 2, 3))),
        padding=draw(PADDINGS),
        use_bias=draw(st.booleans()),
        activation=draw(ACTIVATIONS),
    )(layers.MaxPooling2D(2)(x))
    return layers.BatchNormalization()(x) if draw(st.booleans()) else x


def _shared(draw, x):
    """One convolution on two levels, with a batch norm for both or each, and on its own."""
    channels = x.shape[-1]
    if draw(st.booleans()):
        name = draw(st.sampled_from(("ACBlock", "RepVGGBlock", "ConvBNBlock")))
        layer = getattr(blocks, name)(channels, activation=draw(ACTIVATIONS))
    else:
        layer = layers.Conv2D(channels, 3, padding="same", activation=draw(ACTIVATIONS))
    norm = layers.BatchNormalization() if draw(st.booleans()) else None
    ends = []
    for level in (x, layer(x) if draw(st.booleans()) else layers.MaxPooling2D(1)(x)):
        y = layer(level)
        y = layers.BatchNormalization()(y) if norm is None and draw(st.booleans()) else y
        y = y if norm is None else norm(y)
        ends.append(layers.ReLU()(y) if draw(st.booleans()) else y)
    return layers.Concatenate()(ends)


def _several(draw, x):
    """Two or three tensors of one shape as one."""
    count = draw(st.integers(2, 3))
    others = [
        blocks.ConvBNBlock(x.shape[-1], activation=draw(ACTIVATIONS))(x)
        for _ in range(count - 1)
    ]
    kind = draw(st.sampled_from(("Add", "Multiply", "Maximum", "Minimum", "Subtract")))
    return getattr(layers, kind)()([x, *others[: 1 if kind == "Subtract" else None]])


def _moved(draw, x):
    return draw(
        st.sampled_from(
            (
                lambda x: x[:, 1:, ::2],
                lambda x: x[:, :, :-1, ::-1],
                lambda x: x[..., ::-1],
                lambda x: ops.transpose(x, (0, 2, 1, 3)),
                layers.Cropping2D(((1, 0), (0, 1))),
                layers.Permute((2, 1, 3)),
                lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0))),
                layers.GaussianNoise(0.1),
                layers.SpatialDropout2D(0.1),
            )
        )
    )(x)


def _depth_to_space(draw, x):
    x = layers.Conv2D(4 * draw(st.integers(1, 3)), 3, strides=2)(x)
    return blocks.DepthToSpace(2)(x)


def _unsupported(draw, x):
    return draw(st.sampled_from(UNSUPPORTED))(draw)(x)


PARTS = [
    *[_block] * 4,
    *[_convolution] * 3,
    *(_residual, _concatenation, _other, _other, _activation, _activation, _depth_to_space),
    *(_gate, _gate, _of_channels, _of_channels, _function, _separable, _several, _moved),
    *(_transposed, _transposed, _shared, _shared),
]


def network(draw):
    """A Functional model of two to five parts and an ending; `draw` as in hypothesis."""
    side = draw(st.sampled_from((8, 9, 12)))
    x = inputs = keras.Input((side, side + draw(st.integers(0, 1)), draw(st.integers(1, 3))))
    if draw(st.integers(0, 9)) == 9:
        inputs = [x, keras.Input((*x.shape[1:3], 2))]
        x = layers.Concatenate()(inputs)
    parts = PARTS + ([_unsupported] if draw(st.integers(0, 9)) == 9 else [])
    for _ in range(draw(st.integers(2, 5))):
        part = draw(st.sampled_from(parts))
        if min(x.shape[1:3]) >= 5:
            x = part(draw, x)
    ending = draw(st.sampled_from(("none", "mean", "flat", "softmax")))
    if ending in ("mean", "softmax"):
        x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    elif ending == "flat":
        x = layers.Dense(4, activation=draw(st.sampled_from((None, "relu"))))(
            layers.Flatten()(x)
        )
    return keras.Model(inputs, layers.Softmax()(x) if ending == "softmax" else x)
