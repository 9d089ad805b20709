"""What `quantize` takes as images, how many it reads, and what it refuses."""

import warnings

import keras
import numpy as np
import PIL.Image
import pytest

import repq_tf
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from tests.quantization.networks import (
    SHAPE,
    equal,
    images,
    network,
    quantize,
    residual,
    values,
)

X = images()


@pytest.fixture(scope="module")
def model():
    return network(residual)


@pytest.fixture(scope="module")
def tiny():
    return network(lambda x: ACBlock(3, name="ac")(ConvBNBlock(3, name="stem")(x)))


PICTURE = PIL.Image.fromarray(np.zeros((10, 10, 3), "uint8"))
BAD_DATA = {
    "None": (None, "must be an array of images or an iterable"),
    "text": ("images", "must be an array of images or an iterable"),
    "number": (3, "must be an array of images or an iterable"),
    "a dict": ({"image": X}, r"Received: a dict; give the images alone, data\[KEY\]"),
    "size": (X[:, :5], r"of images of shape \(10, 10, 3\). Received: .* \(48, 5, 10, 3\)"),
    "channels": (X[..., :1], r"Received: an array of shape \(48, 10, 10, 1\)"),
    "one image": (X[0], r"a single image of shape \(10, 10, 3\); give images\[None\]"),
    "unbatched": (list(X[:3]), r"a single image .* dataset.batch\(32\)"),
    "unbatched pairs": (zip(X[:3], "abc", strict=True), r"dataset.batch\(32\)"),
    "batches of dicts": ([{"image": X}], "a dict with the keys .'image'.; take the images out"),
    "pictures": ([PICTURE] * 2, "pictures of PIL; stack them"),
    "one bad batch": ([X[:4], X[:4, :, :8]], r"Received: an array of shape \(4, 10, 8, 3\)"),
    "no arrays": ([None], "Received: NoneType"),
    "complex": (X + 1j, "must be real numbers"),
    "nothing in them": (X[:, :0], "of shape"),
    "words": (np.full((4, *SHAPE), "a"), "must be real numbers"),
    "NaN": (np.where(X > 2, np.nan, X), "must be finite"),
    "infinity": (np.where(X > 2, np.inf, X), "must be finite"),
    "beyond float32": (X * 1e30, "must be images. Received: values up to"),
    "all zero": (0 * X, "must be images. Received: values that are all 0"),
    "empty": (X[:0], "must not be empty"),
    "no batches": ([], "must not be empty"),
    "an empty batch": ([X[:4], X[:0]], "must not be empty"),
    "exhausted": (iter(()), "must not be empty"),
}


@pytest.mark.parametrize(("data", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_calibration_data(model, data, message):
    before = values(model)
    for function in (repq_tf.quantize, repq_tf.reestimate_batch_norm):
        if isinstance(data, zip | type(iter(()))):
            data = zip(X[:3], "abc", strict=True) if isinstance(data, zip) else iter(())
        with pytest.raises(ValueError, match=message):
            if function is repq_tf.quantize:
                function(model, calibration_data=data, verbose=False)
            else:
                function(model, data)
    assert equal(values(model), before)


class Sequence(keras.utils.PyDataset):
    """It does not end by itself when it is iterated over."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index * 24 : index * 24 + 24] if index < 2 else X[:0], np.zeros(24)


@pytest.mark.slow
def test_every_kind_of_calibration_data(tiny):
    import tensorflow as tf
    import torch.utils.data

    expected = values(quantize(tiny, calibration_data=[X[:24], X[24:]]))
    labels = np.zeros(len(X))
    dataset = tf.data.Dataset.from_tensor_slices((X, labels)).batch(24)
    pairs = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(labels))
    kinds = [
        dataset,
        (batch for batch in (X[:24], X[24:])),
        [tf.constant(X[:24]), X[24:]],
        [(X[:24], labels[:24]), (X[24:], labels[24:])],
        Sequence(),
        torch.utils.data.DataLoader(pairs, batch_size=24),
    ]
    for data in kinds:
        assert equal(values(quantize(tiny, calibration_data=data)), expected)
    whole = values(quantize(tiny, calibration_data=X))
    for data in ((X, labels), (tf.constant(X), labels, labels)):
        assert equal(values(quantize(tiny, calibration_data=data)), whole)


@pytest.mark.slow
def test_as_many_images_are_read_as_asked_for(tiny, capsys):
    """Of an array at equal distances, since it may be sorted; of an iterable the first."""
    import tensorflow as tf

    def endless():
        while True:
            yield X[:16]

    expected = values(quantize(tiny, calibration_data=X[::3]))
    options = {"calibration_images": 16}
    assert equal(values(quantize(tiny, calibration_data=X, **options)), expected)
    expected = values(quantize(tiny, calibration_data=X[:16]))
    repeated = tf.data.Dataset.from_tensor_slices(X).batch(16).repeat()
    for data in (endless(), repeated, [X[:16], X], (part for part in [X])):
        assert equal(values(quantize(tiny, calibration_data=data, **options)), expected)
    repq_tf.quantize(tiny, calibration_data=endless())
    assert "calibrated on 512 images" in capsys.readouterr().out
    repq_tf.reestimate_batch_norm(tiny, endless())
    with pytest.raises(ValueError, match=r"a dataset that repeats; add .take\(n\)"):
        quantize(tiny, calibration_data=repeated, calibration_images=None)
    for count in (0, 1.5, "8", True):
        with pytest.raises(ValueError, match="calibration_images must be a positive whole"):
            quantize(tiny, calibration_data=X, calibration_images=count)


def behind(first):
    """A network of a first layer, or two, whose channels a second one reads."""

    def function(x):
        for layer in first():
            x = layer(x)
        return keras.layers.Conv2D(3, 1, name="end")(keras.layers.ReLU()(x))

    return network(function)


FIRST = {
    "stock": lambda: [keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()],
    "root": lambda: [ConvBNBlock(4, name="stem")],
    "branches": lambda: [RepVGGBlock(4, name="vgg")],
}
READERS = {
    "quantize": lambda m, x: repq_tf.quantize(m, calibration_data=x, verbose=False),
    "post-training": lambda m, x: repq_tf.post_training_quantize(
        m, calibration_data=x, per_channel=False, verbose=False
    ),
    "analyze": lambda m, x: repq_tf.analyze(m, x, verbose=False),
    "sensitivity": lambda m, x: repq_tf.sensitivity(m, x, bits=4, verbose=False),
    "equalize": lambda m, x: repq_tf.equalize(m, x, verbose=False),
    "re-estimate": lambda m, x: repq_tf.reestimate_batch_norm(m, x, verbose=False),
}


@pytest.mark.slow(4)
@pytest.mark.parametrize("reader", READERS)
def test_images_of_another_range_than_in_training_are_noticed(reader):
    """By what a stock batch norm, one at a block's root and those of branches remember."""
    raw = np.random.default_rng(0).integers(0, 256, X.shape)
    noticed = "data: features of layer .* are .* times as large as those that its batch"
    for name, first in FIRST.items():
        with pytest.warns(UserWarning, match=noticed) as warned:
            READERS[reader](behind(first), raw)
        files = [one.filename for one in warned if one.category is UserWarning]
        assert files == [__file__], name  # once, of the user's line


def test_images_of_about_the_range_are_not_judged(model):
    """Nor is a network that was never trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantize(model, calibration_data=2 * X + 1)
        new = keras.models.clone_model(behind(FIRST["stock"]))
        quantize(new, calibration_data=255 * X)


@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_of_a_few_steps_a_batch_norm_remembers_its_start_too(scale):
    """Which is a variance of 1: it hides how small, or how large, the features were."""
    few, many = (keras.models.clone_model(behind(FIRST["stock"])) for _ in range(2))
    many.layers[2].momentum = 0.5
    for model, steps in ((few, 1), (many, 40)):
        model.layers[2].epsilon = 1e-9
        for _ in range(steps):
            model(scale * X, training=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            quantize(model, calibration_data=scale * X)
    many.layers[2].momentum = 0.999
    for wrong in (255, 0.01):
        with pytest.warns(UserWarning, match="are .* times as large as those that its batch"):
            quantize(many, calibration_data=wrong * scale * X)


def test_of_one_vector_no_deviation_is_judged():
    inputs = keras.Input((8,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    vectors = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    repq_tf.reestimate_batch_norm(model, vectors, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        quantize(model, calibration_data=[vector[None] for vector in vectors])
    with pytest.warns(UserWarning, match="are 25. times as large"):
        quantize(model, calibration_data=255 * vectors)


def test_whole_numbers_are_read_as_they_are(tiny):
    data = np.clip(np.rint(X * 20), 0, 255)
    one = quantize(tiny, calibration_data=data.astype("uint8"))
    assert equal(values(one), values(quantize(tiny, calibration_data=data)))
    assert not one.get_layer("image_quantize").signed
