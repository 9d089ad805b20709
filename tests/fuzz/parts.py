"""Parts of random networks: blocks of the library, stock layers, operations."""

import keras
import numpy as np
from keras import ops

from repq_tf import layers as blocks
from tests.fuzz import draws as st
from tests.zoo import BLOCKS

layers = keras.layers

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


# Of single values; those that have an operator of their own more often.
FUNCTIONS = ["tanh", "elu", "gelu"] * 3 + (
    "celu exponential hard_shrink hard_tanh log_sigmoid mish selu soft_shrink softplus "
    "softsign sparse_plus sparse_sigmoid squareplus tanh_shrink"
).split()


def _function(draw, x):
    kind = draw(st.integers(0, 9))
    if kind == 9:
        return layers.ELU(draw(st.sampled_from((0.5, 1.0))))(x)
    if kind == 8:
        return ops.gelu(x)
    return layers.Activation(draw(st.sampled_from(FUNCTIONS)))(x)


def _of_channels(draw, x):
    """Batch norms and constants anywhere."""
    constant = np.linspace(-1.5, 2, x.shape[-1]).astype("float32")
    x = draw(
        st.sampled_from(
            (
                lambda x: layers.BatchNormalization()(x),
                lambda x: layers.BatchNormalization(scale=False)(layers.ReLU()(x)),
                lambda x: layers.BatchNormalization()(layers.BatchNormalization()(x)),
                lambda x: layers.Rescaling(0.7, -0.2)(x),
                lambda x: layers.Normalization(mean=0.3, variance=2.0)(x),
                lambda x: x * constant,
                lambda x: 1.5 - x,
                lambda x: x / (constant + 2.0) + constant,
                lambda x: ops.relu6(x + 3.0) * x / 6.0,
                lambda x: -x,
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
    height, width, channels = x.shape[1:]
    return draw(
        st.sampled_from(
            (
                lambda x: x[:, 1:, ::2],
                lambda x: x[:, :, :-1, ::-1],
                lambda x: ops.flip(x, axis=2),
                lambda x: x[..., ::-1],
                lambda x: ops.transpose(x, (0, 2, 1, 3)),
                layers.Cropping2D(((1, 0), (0, 1))),
                layers.Permute((2, 1, 3)),
                layers.Reshape((width, height, channels)),
                lambda x: ops.reshape(x, (-1, width, height, channels)),
                lambda x: ops.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0))),
                lambda x: ops.max_pool(x, 2, 2),
                lambda x: ops.average_pool(x, 3, 1, "same"),
                lambda x: ops.image.resize(x, (2 * height, width), interpolation="nearest"),
                lambda x: ops.concatenate([x, x[:, ::-1]], axis=-1),
                lambda x: layers.Concatenate(axis=1)([x, layers.ReLU()(x)]),
            )
        )
    )(x)


def _training_only(draw, x):
    return draw(
        st.sampled_from(
            (
                lambda: layers.Dropout(0.3),
                lambda: layers.GaussianDropout(0.1),
                lambda: layers.GaussianNoise(0.1),
                lambda: layers.SpatialDropout2D(0.1),
                lambda: layers.RandomFlip("horizontal"),
                layers.Identity,
            )
        )
    )()(x)


def _reduced(draw, x):
    """All pixels as one, multiplied with them again."""
    y = draw(
        st.sampled_from(
            (
                layers.GlobalAveragePooling2D(keepdims=True),
                layers.GlobalMaxPooling2D(keepdims=True),
                lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
                lambda x: ops.max(x, axis=(1, 2), keepdims=True),
            )
        )
    )(x)
    return ops.multiply(x, ops.sigmoid(y)) if draw(st.booleans()) else x + y


def _nested(draw, x):
    """A model within the model."""
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, _convolution(draw, inputs))(x)


def _depth_to_space(draw, x):
    x = layers.Conv2D(4 * draw(st.integers(1, 3)), 3, strides=2)(x)
    return blocks.DepthToSpace(2)(x)


PARTS = [
    *[_block] * 5,
    *[_convolution] * 4,
    *(_residual, _concatenation, _other, _other, _activation, _activation, _depth_to_space),
    *(_gate, _gate, _of_channels, _of_channels, _function, _function, _separable, _several),
    *(_moved, _moved, _training_only, _reduced, _nested),
    *(_transposed, _transposed, _shared, _shared),
]
