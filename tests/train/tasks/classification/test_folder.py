import os

import keras
import numpy as np
import pytest
from PIL import Image

from repq_tf.files.pictures import read_picture
from repq_tf.train.errors import UserError
from repq_tf.train.settings import resolve
from repq_tf.train.tasks.classification import folder
from repq_tf.train.tasks.classification.folder import load_folder
from repq_tf.train.tasks.classification.load import load_images
from repq_tf.train.tasks.classification.task import Classification


def _write(path, value, size=(10, 8), mode="RGB"):
    """Writes a picture of one colour; `size` is (height, width)."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shape = size if mode == "L" else (*size, 3)
    Image.fromarray(np.full(shape, value, "uint8")).save(path)


def _classes(root, counts, **options):
    for k, (name, count) in enumerate(counts.items()):
        for n in range(count):
            _write(f"{root}/{name}/{n:03}.png", 50 * k + n, **options)


def test_one_level_is_split_by_class_the_same_way_every_time(tmp_path):
    _classes(tmp_path, {"cat": 10, "dog": 5})
    data = load_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (10, 8, 3)
    assert (data.train_size, data.test_size) == (12, 3)
    images, labels = data.test_sample(3)
    np.testing.assert_array_equal(labels, [0, 0, 1])
    np.testing.assert_array_equal(images, load_folder(tmp_path).test_sample(3)[0])


def test_pictures_are_those_of_their_class(tmp_path):
    _classes(tmp_path, {"a": 3, "b": 4, "c": 2})
    data = load_folder(tmp_path)
    batches = data.train_batches(0, 1, 0, "none", data.train_size)
    for k in range(len(batches)):
        image, label = batches[k]
        assert round(float((image[0, 0, 0, 0] + 1) * 127.5)) // 50 == label[0]


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_train_and_test_folders(tmp_path, test_name):
    _classes(tmp_path / "train", {"a": 3, "b": 4})
    _classes(tmp_path / test_name, {"a": 1, "b": 2})
    data = load_images(f"folder:{tmp_path}")
    assert (data.train_size, data.test_size) == (7, 3)


def test_grey_pictures_have_one_channel(tmp_path):
    _classes(tmp_path, {"a": 2, "b": 2}, mode="L")
    assert load_folder(tmp_path).image_shape == (10, 8, 1)
    _write(f"{tmp_path}/b/colour.png", 7)
    assert load_folder(tmp_path).image_shape == (10, 8, 3)


def test_sizes_may_differ_if_one_is_given(tmp_path):
    _classes(tmp_path, {"a": 2, "b": 2})
    _write(f"{tmp_path}/b/large.jpg", 7, size=(30, 40))
    with pytest.raises(UserError, match="--image_size.*10x8.*30x40"):
        load_folder(tmp_path)
    assert load_folder(tmp_path, image_size=16).image_shape == (16, 16, 3)


def test_large_pictures_are_kept_larger_than_the_input(tmp_path):
    _classes(tmp_path, {"a": 2, "b": 2}, size=(100, 120))
    data = load_folder(tmp_path, image_size=70)
    assert data.image_shape == (70, 70, 3)
    images, _ = data.train_batches(0, 2, 0, "resized_crop", 1)[0]
    assert images.shape == (2, 70, 70, 3)
    assert data.test_batches(2)[0][0].shape == (2, 70, 70, 3)


def test_what_does_not_fit_in_memory_is_read_again_and_equal(tmp_path, monkeypatch):
    _classes(tmp_path, {"a": 6, "b": 6})
    held = load_folder(tmp_path, image_size=8)
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 10)
    read = load_folder(tmp_path, image_size=8)
    for a, b in zip(
        held.train_batches(2, 3, 1, "crop_flip", 2)[1],
        read.train_batches(2, 3, 1, "crop_flip", 2)[1],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(held.train_sample(5, 0), read.train_sample(5, 0))


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="--dataset=folder:PATH.*nowhere"):
        load_folder(tmp_path / "nowhere")


def test_folders_without_classes_or_pictures(tmp_path):
    with pytest.raises(UserError, match="two class folders.*Found: 0"):
        load_folder(tmp_path)
    _classes(tmp_path, {"a": 2})
    with pytest.raises(UserError, match="Found: 1"):
        load_folder(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match="class folder .*b holds no images"):
        load_folder(tmp_path)


def test_one_picture_cannot_be_split(tmp_path):
    _classes(tmp_path, {"a": 2, "lonely": 1})
    with pytest.raises(UserError, match="lonely"):
        load_folder(tmp_path)


def test_train_without_test_and_other_classes(tmp_path):
    _classes(tmp_path / "train", {"a": 2, "b": 2})
    with pytest.raises(UserError, match="none of: test, val, validation"):
        load_folder(tmp_path)
    _classes(tmp_path / "test", {"a": 2, "c": 2})
    with pytest.raises(UserError, match="same class folders.*b, c"):
        load_folder(tmp_path)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    _classes(tmp_path, {"a": 3, "b": 3})
    bad = tmp_path / "b" / "broken.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(UserError, match="broken.png cannot be read"):
        load_folder(tmp_path)
    whole = (tmp_path / "a" / "000.png").read_bytes()
    bad.write_bytes(whole[: len(whole) - 30])  # its header is whole
    with pytest.raises(UserError, match="broken.png cannot be read"):
        load_folder(tmp_path)


def test_data_dir_has_no_meaning_with_folders(tmp_path):
    with pytest.raises(UserError, match="--data_dir"):
        load_images(f"folder:{tmp_path}", data_dir=str(tmp_path))


def test_pictures_may_lie_deeper_in_their_class(tmp_path):
    _classes(tmp_path / "train", {"a": 2, "b": 2})
    _write(f"{tmp_path}/train/a/images/deep.png", 7)
    _classes(tmp_path / "val", {"a/images": 1, "b/images": 1})
    data = load_folder(tmp_path)
    assert (data.class_names, data.train_size, data.test_size) == (("a", "b"), 5, 2)


def _cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 30])


def test_bad_pictures_are_skipped_and_named_if_wanted(tmp_path):
    _classes(tmp_path / "train", {"a": 5, "b": 4})
    _classes(tmp_path / "test", {"a": 2, "b": 2})
    bad = [tmp_path / "train" / "b" / "001.png", tmp_path / "test" / "a" / "000.png"]
    for path in bad:
        _cut(path)
    data = load_images(f"folder:{tmp_path}", skip_bad_images=True)
    assert (data.train_size, data.test_size) == (8, 3)
    assert data.skipped == tuple(map(str, bad))
    np.testing.assert_array_equal(data.test_sample(3)[1], [0, 1, 1])
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no readable images; skipped: 5"):
        load_images(f"folder:{tmp_path}", skip_bad_images=True)


def test_a_picture_that_is_bad_in_the_midst_of_training_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MEMORY_LIMIT", 10)
    _classes(tmp_path, {"a": 6, "b": 6})
    data = load_folder(tmp_path, image_size=8)
    for path in (tmp_path / "b").iterdir():
        _cut(path)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", "mse", run_eagerly=True)
    with pytest.raises(UserError, match="b/00..png cannot be read"), data.reading():
        model.fit(data.train_batches(0, 3, 0, "none", 3), verbose=0)


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_pictures_of_more_than_8_bits_are_named(mode, tmp_path):
    """Pillow would cut their values off."""
    file = tmp_path / "deep.tif"
    Image.fromarray(np.full((8, 8), 300, "uint16" if mode == "I;16" else "float32")).save(file)
    with pytest.raises(ValueError, match=f"deep.tif cannot be read.* not mode {mode}"):
        read_picture(file, 1)


def test_images_of_a_single_pixel_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("RGB", (5, 1), (k, 0, 0)).save(tmp_path / name / f"{k}.png")
    settings = resolve(dataset=f"folder:{tmp_path}", batch_size=1)
    with pytest.raises(UserError, match="at least 2x2; --image_size .*--dataset=.* of 1x5"):
        Classification(settings)
    assert Classification(resolve(dataset=f"folder:{tmp_path}", batch_size=1, image_size=2))
    with pytest.raises(UserError, match="--image_size must be an integer from 2"):
        resolve(image_size=1)
