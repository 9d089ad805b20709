"""Small networks and images that the tests of quantization and deployment share."""

import keras
import numpy as np

import repq_tf
from repq_tf.branches import BatchNorm
from repq_tf.layers import ACBlock, ConvBNBlock, ReparamConv, RepVGGBlock

layers = keras.layers
array = keras.ops.convert_to_numpy
SHAPE = (10, 10, 3)


def images(count=48, shape=SHAPE, seed=0):
    """Images of both signs."""
    return np.random.default_rng(seed).normal(0.3, 1, (count, *shape)).astype("float32")


def every_layer(model):
    """The layers of a model and of the models in it, and the branches of blocks."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from every_layer(layer)
        elif isinstance(layer, ReparamConv):
            yield from layer.expression.walk()
        else:
            yield layer


def settle(model, seed=0, x=None):
    """Gives a model the weights of a trained one: no zero bias, real statistics."""
    rng = np.random.default_rng(seed)

    def norm(node):
        if node.gamma is not None:
            shape = node.gamma.shape
            node.gamma.assign(rng.choice((1, 1, -1), shape) * rng.uniform(0.5, 1.5, shape))
        if node.beta is not None:
            node.beta.assign(rng.normal(0, 0.3, node.beta.shape))

    def bias(layer):
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))

    for layer in every_layer(model):
        if isinstance(layer, BatchNorm | layers.BatchNormalization):
            norm(layer)
        else:
            bias(layer)
    repq_tf.reestimate_batch_norm(
        model, images(shape=model.input_shape[1:]) if x is None else x
    )
    return model


def network(function, shape=SHAPE, seed=0):
    """The float model of a function of its input, with settled weights."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape, name="image")
    return settle(keras.Model(inputs, function(inputs), name="net"), seed)


def quantize(model, **options):
    """`repq_tf.quantize`, silent, on the usual images."""
    if "calibration_data" not in options:
        options["calibration_data"] = images(shape=model.input_shape[1:])
    return repq_tf.quantize(model, verbose=False, **options)


def block_of(model, name):
    """The block that a layer has become; before an output, whose name that bears, another's."""
    names = [layer.name for layer in model.layers]
    return model.get_layer(f"{name}_operator" if f"{name}_operator" in names else name)


def quantizer_of(model, name):
    """The quantizer behind a layer; before an output, it has that one's name."""
    names = [layer.name for layer in model.layers]
    return model.get_layer(f"{name}_quantize" if f"{name}_quantize" in names else name)


def residual(x):
    """Every block, a residual sum, a mean and logits."""
    x = ConvBNBlock(8, activation="relu", name="stem")(x)
    y = ACBlock(8, activation="relu", name="ac")(x)
    y = RepVGGBlock(8, name="vgg")(y)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return layers.Dense(5, name="logits")(x)


def relative(actual, expected):
    """The largest difference as a part of the largest value."""
    actual, expected = array(actual), array(expected)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def train(model, x, outputs=5, steps=2, rate=0.01, seed=1):
    """A few eager steps (compiling takes longer); returns the losses."""
    y = np.random.default_rng(seed).normal(size=(len(x), outputs))
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), "mse", run_eagerly=True)
    history = model.fit(x, y, batch_size=-(-len(x) // steps), verbose=0)
    return history.history["loss"]


def values(model):
    """The weights of a model, as arrays."""
    return [array(v) for v in model.weights]


def equal(one, other):
    """Whether two lists of arrays are the same."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def stock(x):
    """Stock layers, with batch norms of several kinds."""
    x = layers.Conv2D(8, 3, padding="same", strides=2, use_bias=False, name="c")(x)
    x = layers.BatchNormalization(epsilon=1e-2, name="c_bn")(x)
    x = layers.ReLU(6.0, name="c_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="d1")(x)
    x = layers.BatchNormalization(scale=False, name="d1_bn")(x)
    x = layers.Activation("relu", name="d1_relu")(x)
    x = layers.DepthwiseConv2D((2, 3), depth_multiplier=2, activation="relu", name="d2")(x)
    x = layers.Conv2D(8, 1, groups=4, activation="relu", name="g")(x)
    x = layers.BatchNormalization(center=False, name="p_bn")(layers.Conv2D(8, 1, name="p")(x))
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(layers.Dropout(0.1)(x)))
    x = layers.Dense(12, activation="relu", name="f1")(x)
    return layers.Dense(5, activation="softmax", name="f2")(x)
