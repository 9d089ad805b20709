import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from repq_tf.train.errors import UserError
from repq_tf.train.tasks.super_resolution.color import luma, to_network
from repq_tf.train.tasks.super_resolution.imresize import imresize
from repq_tf.train.tasks.super_resolution.pair import Pair, make_pair
from repq_tf.train.tasks.super_resolution.pairs import load_pairs, read_pairs
from repq_tf.train.tasks.super_resolution.patches import CentreDataset, PatchDataset


def _write(path, image):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(image).save(path)


def _picture(k, size=(21, 18)):
    return np.random.default_rng(k).integers(0, 256, (*size, 3)).astype("uint8")


def _ramp(offset=0):
    """A pair whose pixels tell where they lie: low-resolution row and column."""
    rows, columns = np.mgrid[:20, :24] + offset
    low = np.stack([rows, columns, np.full_like(rows, offset)], axis=-1).astype("uint8")
    return Pair("ramp", low, low.repeat(2, 0).repeat(2, 1))


def _epoch(**options):
    options = {"batch_size": 4, "patch_size": 6, "crops_per_image": 5, **options}
    data = PatchDataset([_ramp(), _ramp(100)], "rgb", 2, **options)
    return [data[k] for k in range(len(data))]


def _pixels(batch):
    return np.rint(batch * 128 + 128).astype(int)


def test_photographs_need_nothing():
    pairs = load_pairs("photographs", 2)
    assert [pair.name for pair in pairs.train] == ["china"]
    (flower,) = pairs.tests["flower"]
    assert flower.high.shape == (426, 640, 3) and flower.low.shape == (213, 320, 3)
    np.testing.assert_array_equal(flower.low, imresize(flower.high, 1 / 2))


def test_a_folder_of_photographs_at_any_depth(tmp_path):
    for k in range(12):
        _write(str(tmp_path / f"set{k % 2}" / f"{k:02}.png"), _picture(k))
    found = read_pairs(str(tmp_path), 3)
    assert len(found) == 12 and found[1].name == os.path.join("set0", "02")
    np.testing.assert_array_equal(found[1].high, _picture(2))
    assert found[1].low.shape == (7, 6, 3)
    whole = load_pairs(f"folder:{tmp_path}", 2)
    assert len(whole.train) == 11 and len(whole.tests["held_out"]) == 1
    names = {p.name for p in whole.train} | {p.name for p in whole.tests["held_out"]}
    assert len(names) == 12
    split = load_pairs(f"folder:{tmp_path / 'set0'}", 2, {"own": str(tmp_path / "set1")})
    assert len(split.train) == len(split.tests["own"]) == 6


def test_what_is_tested_is_not_trained(tmp_path):
    _write(str(tmp_path / "all" / "a.png"), _picture(0))
    _write(str(tmp_path / "all" / "set5" / "b.png"), _picture(1))
    with pytest.raises(UserError, match="set5/b.png of the test set five is a training image"):
        load_pairs(f"folder:{tmp_path / 'all'}", 2, {"five": str(tmp_path / "all" / "set5")})
    (tmp_path / "link").symlink_to(tmp_path / "all" / "set5")
    with pytest.raises(UserError, match="link/b.png of the test set five"):
        load_pairs(f"folder:{tmp_path / 'all'}", 2, {"five": str(tmp_path / "link")})


def test_photographs_of_equal_names_are_named(tmp_path):
    for end in ("png", "jpg"):
        Image.fromarray(np.zeros((40, 40, 3), "uint8")).save(tmp_path / f"a.{end}")
    with pytest.raises(UserError, match=r"without the suffix. Received: .*a.jpg and .*a.png"):
        load_pairs(f"folder:{tmp_path}", 2, {})


def test_small_images_are_no_photographs(tmp_path):
    for name in ("DIV2K_train_HR", "DIV2K_train_LR_bicubic/X2", "LR_x3", "LR"):
        _write(str(tmp_path / name / "0001.png"), _picture(0))
    (pair,) = read_pairs(str(tmp_path), 2)
    assert pair.name == os.path.join("DIV2K_train_HR", "0001")
    assert pair.file == str(tmp_path / "DIV2K_train_HR" / "0001.png")


def test_given_small_images_are_used(tmp_path):
    small = np.full((10, 9, 3), 7, "uint8")
    _write(str(tmp_path / "LR_x2" / "one.png"), small)
    _write(str(tmp_path / "HR_x2" / "one.png"), _picture(1))
    _write(str(tmp_path / "LR_x3" / "one.png"), small[:7, :6])
    _write(str(tmp_path / "LR_x3" / "two.png"), small[:7, :6])
    _write(str(tmp_path / "HR_x3" / "one.png"), _picture(3))
    (pair,) = read_pairs(str(tmp_path), 2)
    np.testing.assert_array_equal(pair.low, small)
    np.testing.assert_array_equal(pair.high, _picture(1)[:20])
    _write(str(tmp_path / "HR_x2" / "two.png"), _picture(2))
    own, other = read_pairs(str(tmp_path), 3)
    np.testing.assert_array_equal(own.high, _picture(3))
    np.testing.assert_array_equal(other.high, _picture(2))  # HR_x3 lacks it
    assert len(read_pairs(str(tmp_path), 4)) == 2  # of the photographs, smaller
    with pytest.raises(UserError, match="HR_x2/two.png has no small image.*LR_x2"):
        read_pairs(str(tmp_path), 2)


def test_grey_pictures_become_grey_colours(tmp_path):
    _write(str(tmp_path / "grey.png"), _picture(0)[..., 0])
    (pair,) = read_pairs(str(tmp_path), 2)
    assert pair.low.shape == (10, 9, 3)
    np.testing.assert_array_equal(pair.high[..., 0], pair.high[..., 2])


@pytest.mark.parametrize(
    "dataset, options, words",
    [
        ("digits", {}, ["photographs, folder:PATH or div2k", "'digits'"]),
        ("photographs", {"data_dir": "/x"}, ["--data_dir=/x", "--dataset=photographs"]),
        ("folder:/no/such", {}, ["/no/such"]),
        ("photographs", {"test_sets": {"a": "/no/such"}}, ["/no/such"]),
    ],
)
def test_bad_sources_are_named(dataset, options, words):
    with pytest.raises(UserError) as error:
        load_pairs(dataset, 2, **options)
    for word in words:
        assert word in str(error.value)


def test_images_that_do_not_belong_together_are_named(tmp_path):
    with pytest.raises(UserError, match="one is 21x18.*must be 10x9. Received: 9x9"):
        make_pair("one", _picture(0), 2, _picture(0, (9, 9)))
    with pytest.raises(UserError, match="smaller than the scale, 4"):
        make_pair("one", _picture(0, (3, 9)), 4)
    with pytest.raises(UserError, match="holds no images"):
        read_pairs(str(tmp_path), 2)
    _write(str(tmp_path / "LR_x2" / "one.png"), _picture(1))
    _write(str(tmp_path / "HR" / "two.png"), _picture(1))
    with pytest.raises(UserError, match="one.png has no photograph of its name"):
        read_pairs(str(tmp_path), 2)
    os.remove(tmp_path / "LR_x2" / "one.png")
    with pytest.raises(UserError, match="at least two are needed"):
        load_pairs(f"folder:{tmp_path}", 2)
    (tmp_path / "HR" / "two.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="two.png cannot be read as an image"):
        read_pairs(str(tmp_path), 2)


def test_div2k_comes_from_tfds(monkeypatch):
    def examples(self, split, **options):
        assert self.builder_config.name == "bicubic_x2" and split in ("train", "validation")

        def generate():
            for k in range(3):
                yield {"hr": _picture(k, (20, 18)), "lr": _picture(k, (10, 9))}

        spec = tf.TensorSpec((None, None, 3), tf.uint8)
        return tf.data.Dataset.from_generator(
            generate, output_signature={"hr": spec, "lr": spec}
        )

    with tfds.testing.mock_data(num_examples=3, as_dataset_fn=examples):
        pairs = load_pairs("div2k", 2)
    assert len(pairs.train) == 3 and len(pairs.tests["div2k"]) == 3
    np.testing.assert_array_equal(pairs.train[2].high, _picture(2, (20, 18)))
    np.testing.assert_array_equal(pairs.train[2].low, _picture(2, (10, 9)))


def test_div2k_of_another_scale_is_refused():
    def examples(self, **options):
        pair = {"hr": _picture(0, (20, 18))[None], "lr": _picture(0, (10, 9))[None]}
        return tf.data.Dataset.from_tensor_slices(pair)

    with tfds.testing.mock_data(as_dataset_fn=examples):
        with pytest.raises(UserError, match="div2k train 0 is 20x18.*scale 3.*must be 6x6"):
            load_pairs("div2k/bicubic_x2", 3)


def test_crops_of_a_pair_show_the_same_place():
    kinds = set()
    for low, high in _epoch(crops_per_image=40):
        assert low.shape == (4, 6, 6, 3) and high.shape == (4, 12, 12, 3)
        assert low.dtype == high.dtype == "float32"
        np.testing.assert_array_equal(low, high[:, ::2, ::2])
        np.testing.assert_array_equal(low, high[:, 1::2, 1::2])
        for crop in _pixels(low):
            rows, columns = crop[..., 0] - crop[..., 2], crop[..., 1] - crop[..., 2]
            assert 0 <= rows.min() and rows.max() < 20 and columns.max() < 24
            down, right = rows[0, 0] < rows[-1, -1], columns[0, 0] < columns[-1, -1]
            kinds.add((down, right, rows[0, 0] == rows[0, 1]))
    assert len(kinds) == 8  # two mirrors and the transpose, in all combinations


def test_an_epoch_of_crops_is_a_function_of_seed_and_epoch():
    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    first = [low for low, _ in _epoch(seed=1, epoch=2)]
    assert len(first) == 2  # ten crops in full batches
    assert same(first, [low for low, _ in _epoch(seed=1, epoch=2)])
    assert not same(first, [low for low, _ in _epoch(seed=1, epoch=3)])
    assert not same(first, [low for low, _ in _epoch(seed=2, epoch=2)])


def test_each_image_gives_its_number_of_crops():
    batches = _epoch(batch_size=10)
    crops = _pixels(batches[0][0])[:, 0, 0, 2]
    assert sorted(crops) == [0] * 5 + [100] * 5


def test_workers_share_a_batch():
    parts = [_epoch(shard=(worker, 2)) for worker in (0, 1)]
    assert all(low.shape[0] == 2 for part in parts for low, _ in part)
    seen = [np.sort(np.concatenate([p[k][0][:, 0, 0, 2] for p in parts])) for k in (0, 1)]
    whole = [np.sort(low[:, 0, 0, 2]) for low, _ in _epoch()]
    np.testing.assert_array_equal(seen, whole)


def test_centres_are_in_order_and_luma_is_trained():
    data = CentreDataset([_ramp(), _ramp(100), _ramp(50)], "y", 2, (7, 9), 2)
    batches = [data[k] for k in range(len(data))]
    assert [len(low) for low, _ in batches] == [2, 1]
    low, high = batches[1]
    assert low.shape == (1, 7, 9, 1) and high.shape == (1, 14, 18, 1)
    wanted = luma(_ramp(50).low[6:13, 7:16])
    np.testing.assert_allclose(low[0], to_network(wanted), atol=1e-6)
    np.testing.assert_array_equal(low, high[:, ::2, ::2])
