import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from repq_tf.files.pictures import scale_pixels
from repq_tf.train.settings import resolve
from repq_tf.train.tasks.classification import randaugment as module
from repq_tf.train.tasks.classification.arrays import ArrayDataset, EvaluationDataset
from repq_tf.train.tasks.classification.randaugment import randaugment
from repq_tf.train.tasks.classification.regularization import Regularization
from repq_tf.train.tasks.classification.task import Classification

CLASSES = 5


def _images(count=24, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, channels))
    return pixels.astype("uint8"), np.arange(count) % CLASSES


def _batches(regularization, shard=(0, 1), batch_size=8, **given):
    data = ArrayDataset(
        *_images(),
        batch_size,
        (12, 12),
        regularization=regularization,
        classes=CLASSES,
        shard=shard,
        **given,
    )
    return [data[k] for k in range(len(data))]


def test_smoothed_labels_are_spread_over_all_classes():
    plain = _batches(Regularization())
    for (images, numbers), (same, labels) in zip(
        plain, _batches(Regularization(label_smoothing=0.2)), strict=True
    ):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(labels[np.arange(8), numbers], 0.84, rtol=1e-6)
        assert np.isclose(labels, 0.04).sum() == 8 * (CLASSES - 1)


def test_mixed_images_and_labels_have_the_same_weights():
    plain = _batches(Regularization())
    found = []
    for (images, numbers), (mixed, labels) in zip(
        plain, _batches(Regularization(mixup=0.7)), strict=True
    ):
        for k in range(8):
            a, b = images[k].ravel(), images[7 - k].ravel()
            weight = (mixed[k].ravel() - b) @ (a - b) / ((a - b) @ (a - b))
            np.testing.assert_allclose(
                mixed[k].ravel(), weight * a + (1 - weight) * b, atol=1e-5
            )
            wanted = weight * np.eye(CLASSES)[numbers[k]]
            wanted += (1 - weight) * np.eye(CLASSES)[numbers[7 - k]]
            np.testing.assert_allclose(labels[k], wanted, atol=1e-5)
            found.append(weight)
    assert len(np.unique(np.round(found, 6))) == len(found) == 24
    assert 0 <= min(found) < 0.2 and 0.8 < max(found) <= 1


def test_weights_are_of_the_beta_distribution():
    weights = Regularization(mixup=0.3).draw_weights(20_000, np.random.default_rng(0))
    assert weights.dtype == "float32"
    assert np.isclose(weights.mean(), 0.5, atol=0.01)
    assert np.isclose(weights.var(), 0.25 / (2 * 0.3 + 1), atol=0.005)


def test_tensors_are_softened_as_arrays_are():
    chosen = Regularization(mixup=0.4, label_smoothing=0.1)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(7, 4, 4, 3)).astype("float32")
    one_hot = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, 7)]
    weights = chosen.draw_weights(7, rng)
    wanted = chosen.soften(images, one_hot, weights)
    found = chosen.soften(*map(tf.constant, (images, one_hot, weights)))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_test_labels_become_one_hot_vectors():
    images, labels = EvaluationDataset(*_images(), 10, (12, 12), classes=CLASSES)[2]
    np.testing.assert_array_equal(labels, np.eye(CLASSES)[np.arange(20, 24) % CLASSES])
    assert len(images) == 4


def test_randaugment_is_a_function_of_the_generator():
    image = _images(1)[0][0]
    results = [randaugment(image, 2, np.random.default_rng(seed)) for seed in range(30)]
    again = [randaugment(image, 2, np.random.default_rng(seed)) for seed in range(30)]
    np.testing.assert_array_equal(results, again)
    assert len({result.tobytes() for result in results}) > 20
    changed = _batches(Regularization(randaugment=2), seed=3, epoch=1)
    repeated = _batches(Regularization(randaugment=2), seed=3, epoch=1)
    other = _batches(Regularization(randaugment=2), seed=3, epoch=2)
    np.testing.assert_array_equal(changed[1][0], repeated[1][0])
    assert not np.array_equal(changed[1][0], other[1][0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", module._OPERATIONS)
def test_every_operation_keeps_shape_and_type(operation, channels):
    for image in _images(3, channels)[0]:
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        for sign in (1, -1):
            changed = np.asarray(operation(picture, 0.9, sign))
            assert changed.dtype == "uint8" and changed.size == image.size


def test_operations_are_what_their_names_say():
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype="uint8"), (24, 24))
    picture = Image.fromarray(ramp)
    none, contrast, _, posterize, solarize, *_ = module._OPERATIONS
    shift_x, shift_y = module._OPERATIONS[-2:]
    np.testing.assert_array_equal(none(picture, 0.9, 1), ramp)
    assert np.asarray(contrast(picture, 0.9, 1)).max() == 255
    np.testing.assert_array_equal(posterize(picture, 0.5, 1), ramp & 0b11111100)
    np.testing.assert_array_equal(
        solarize(picture, 0.5, 1), np.where(ramp < 128, ramp, 255 - ramp)
    )
    pixels = 0.9 * 100 / 224 * 24
    middle = np.asarray(shift_x(picture, 0.9, 1)).astype(float)[12, :12]
    np.testing.assert_allclose(middle, ramp[12, :12] + 10 * pixels, atol=1)
    rotated = np.asarray(module._rotate(picture, 1.0, 1)).astype(float)
    slope = (rotated[12, 14] - rotated[12, 10]) / 4, (rotated[14, 12] - rotated[10, 12]) / 4
    np.testing.assert_allclose(np.hypot(*slope), 10, atol=0.5)
    np.testing.assert_allclose(abs(slope[1] / slope[0]), np.tan(np.deg2rad(30)), atol=0.05)
    assert np.asarray(shift_y(picture, 0.9, 1))[-1, 0] == 128


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_every_batch(workers):
    whole = _batches(Regularization())
    parts = [_batches(Regularization(), (worker, workers)) for worker in range(workers)]
    for k, (images, labels) in enumerate(whole):
        for worker, part in enumerate(parts):
            np.testing.assert_array_equal(part[k][1], labels[worker::workers])
            np.testing.assert_array_equal(part[k][0], images[worker::workers])
    one = scale_pixels(_images()[0])
    assert all(batch in one for images, _ in whole for batch in images)


@pytest.mark.slow
def test_soft_labels_are_trained_on_and_judged(capsys):
    task = Classification(resolve(mixup=0.2, label_smoothing=0.1, augment="none"))
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    task.compile(model, keras.optimizers.Adam(0.03))
    history = model.fit(
        task.train_batches(0, 22), validation_data=task.validation_batches(), verbose=0
    ).history
    assert history["val_accuracy"][0] > 0.6  # a linear model, one epoch
    judged = task.evaluate(model)
    assert judged["accuracy"] == pytest.approx(history["val_accuracy"][0])
    capsys.readouterr()
    found = task.evaluate_file(lambda images: model.predict(images, verbose=0), verbose=1)
    assert found["accuracy"] == pytest.approx(judged["accuracy"])
    assert "360/360" in capsys.readouterr().out  # images
    images, labels = task.images.test_sample(360)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert judged["loss"] == pytest.approx(float(plain(labels, model(images))), rel=1e-4)
