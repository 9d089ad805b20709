"""The receptive field that the operators tell, against where a changed pixel shows."""

import numpy as np
import pytest

import repq_tf
from repq_tf.tflite import reading
from repq_tf.tflite.receptive_field import ReceptiveField, receptive_field
from tests.deployment.files import run
from tests.quantization.networks import layers, network

SIZE = 31
SHAPE = (SIZE, SIZE, 2)


def read(function, path, shape=SHAPE):
    repq_tf.export_tflite_float(network(function, shape), path)
    return receptive_field(reading.read(path)[1])


def seen(path, scale):
    """How far from a pixel of the input its change shows in the output, and its scale."""
    middle = SIZE // 2
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("float32")
    changed = image.copy()
    changed[0, middle, middle] += 50
    (before,), _, _ = run(path, image)
    (after,), _, _ = run(path, changed)
    assert before.shape[1:3] == (scale * SIZE, scale * SIZE)
    places = np.argwhere((before != after)[0].any(axis=-1)) // scale
    return int(np.abs(places - middle).max())


def conv(filters, size, name, **options):
    return repq_tf.layers.ConvBlock(filters, size, name=name, **options)


def shuffled(x):
    x = conv(6, (3, 5), "a", activation="relu")(x)
    return repq_tf.layers.DepthToSpace(2, name="d")(conv(8, 3, "b")(x))


def sums_and_copies(x):
    y = layers.PReLU(shared_axes=[1, 2], name="p")(conv(4, 3, "a")(x))
    y = layers.Add(name="add")([conv(4, 1, "b")(y), conv(4, 7, "c")(x)])
    return layers.Concatenate(name="join")([y, x])


def even_and_lopsided(x):
    x = conv(4, 4, "a")(x)
    x = conv(4, 3, "b", padding=((2, 0), (0, 2)))(x)
    return conv(4, 3, "c", padding=((2, 0), (0, 2)))(x)


def after_the_shuffle(x):
    x = repq_tf.layers.DepthToSpace(3, name="d")(conv(9, 3, "a")(x))
    x = conv(4, 3, "b")(x)
    return repq_tf.layers.DepthToSpace(2, name="e")(conv(4, 5, "c")(x))


def depthwise_and_stock(x):
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="a")(x)
    return layers.Conv2D(3, 3, padding="same", name="b")(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (shuffled, ReceptiveField(2, 3)),
        (sums_and_copies, ReceptiveField(1, 3)),
        (even_and_lopsided, ReceptiveField(1, 6)),
        (after_the_shuffle, ReceptiveField(6, 2)),
        (depthwise_and_stock, ReceptiveField(1, 2)),
    ],
)
def test_radius(function, expected, tmp_path):
    path = tmp_path / "x.tflite"
    field = read(function, path)
    assert field == expected
    assert seen(path, field.scale) == field.radius


def test_of_the_published_network(tmp_path):
    model = repq_tf.models.ecbsr_m4c8_plain(scale=3, input_shape=(9, 8, 1))
    repq_tf.export_tflite_float(model, tmp_path / "x.tflite")
    field = receptive_field(reading.read(tmp_path / "x.tflite")[1])
    assert field == ReceptiveField(scale=3, radius=6)


def mean(x):
    y = layers.GlobalAveragePooling2D(keepdims=True, name="m")(x)
    return layers.Multiply(name="scaled")([x, y])


def classifier(x):
    return layers.Dense(3, name="f")(layers.Flatten(name="flat")(x))


def unpadded(x):
    x = layers.ZeroPadding2D(((0, 0), (1, 2)), name="z")(layers.Conv2D(4, 3, name="a")(x))
    return repq_tf.layers.DepthToSpace(2, name="d")(x)


REFUSED = {
    "CONV_2D has strides or is dilated": lambda x: conv(2, 3, "a", strides=2)(x),
    "AVERAGE_POOL_2D does not compute the same": layers.AveragePooling2D(3, 1, "same"),
    "MEAN does not compute the same": mean,
    "PRELU has a constant for each place": layers.PReLU(name="p"),
    "must be images": classifier,
    r"2 times as large .* height differs from that by -4 and its width by \+2 ": unpadded,
    "CONCATENATION does not compute the same": lambda x: layers.Concatenate(1)([x, x]),
}


@pytest.mark.parametrize(("message", "function"), REFUSED.items(), ids=REFUSED.keys())
def test_networks_that_know_the_place(message, function, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(function, tmp_path / "x.tflite", (8, 8, 2))
