import dataclasses
import os

import keras
import pytest

from repq_tf.train.errors import UserError
from repq_tf.train.run import text_files
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve


def test_a_new_folder_is_made_and_claimed(tmp_path):
    run, settings = RunFolder(tmp_path / "a" / "b"), resolve()
    run.check(settings)
    assert not os.path.exists(run.path)
    run.claim(settings)
    run.check(settings)
    run.claim(settings)
    assert os.listdir(run.path) == ["settings.json"]


def test_a_run_with_other_settings_is_refused_and_kept(tmp_path):
    run, settings = RunFolder(tmp_path), resolve()
    run.claim(settings)
    before = (tmp_path / "settings.json").read_text()
    other = dataclasses.replace(settings, weight_bits=4, seed=7)
    with pytest.raises(UserError) as error:
        run.check(other)
    for part in ("other settings", "weight_bits: 8 there, 4 now", "seed: 0 there, 7 now"):
        assert part in str(error.value)
    assert "batch_size" not in str(error.value)
    assert (tmp_path / "settings.json").read_text() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="--workdir .*holds other files"):
        RunFolder(tmp_path).check(resolve())
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_start_that_was_killed_at_once_can_be_repeated(tmp_path):
    (tmp_path / ".writing-settings.json").write_text('{"mod')
    run = RunFolder(tmp_path)
    run.check(resolve())
    run.claim(resolve())
    run.check(resolve())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir must be a folder that can be written"):
        RunFolder(tmp_path / "file" / "run").check(resolve())
    with pytest.raises(UserError, match="--workdir must be a folder that can be written"):
        RunFolder(tmp_path / "file").check(resolve())
    with pytest.raises(UserError, match="--workdir must be a folder that can be written"):
        RunFolder("/proc/run").check(resolve())
    with pytest.raises(UserError, match="--workdir must be .*File name too long"):
        RunFolder(tmp_path / ("x" * 300)).check(resolve())


def test_damaged_settings_are_named(tmp_path):
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match="settings.json is damaged"):
        RunFolder(tmp_path).check(resolve())


_FLOAT = {"settings.json", "seconds.json", "history_float.csv", "float.keras"}
_START = _FLOAT | {"model_float.tflite", "quantized_start.keras"}
_TRAINED = _START | {"state_qat.npz", "history_qat.csv", "quantized.keras"}
_JUDGED = _TRAINED | {"merged.keras", "evaluation.json", "summary.html", "plots/weights.png"}
_JUDGED |= {"analysis.html"}
_FILE = _JUDGED | {"model.tflite"}
_ALL = _FILE | {"model.json", "model.h", "measurement.json", "report.md", "report.json"}


@pytest.mark.parametrize(
    ("product", "left"),
    [
        ("float.keras", _FLOAT),
        ("quantized_start.keras", _START),
        ("quantized.keras", _TRAINED),
        ("model.tflite", _FILE),
    ],
)
def test_what_was_made_of_a_product_is_removed(tmp_path, product, left):
    (tmp_path / "plots").mkdir()
    for name in _ALL:
        (tmp_path / name).write_text("")
    run = RunFolder(tmp_path)
    for _ in range(2):  # again, after a kill
        run.remove_made_of([product])
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert {str(file.relative_to(tmp_path)) for file in files} == left


def test_a_flag_that_is_newer_than_the_run_has_its_default_there(tmp_path):
    run, settings = RunFolder(tmp_path), resolve()
    old = settings.as_dict()
    for name in ("step_gradient", "merged_bn", "schedule", "scale", "label_smoothing", "task"):
        del old[name]
    text_files.write_json(run.file("settings.json"), {**old, "long_forgotten": 3})
    run.check(settings)
    run.claim(settings)
    run.join(settings)
    other = dataclasses.replace(settings, step_gradient="lsq", label_smoothing=0.1)
    with pytest.raises(UserError) as error:
        run.check(other)
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  step_gradient: 'bounded' there, 'lsq' now",
        "  label_smoothing: 0.0 there, 0.1 now",
    ]


def test_what_a_newer_flag_would_imply_follows_the_old_run(tmp_path):
    """The recipe is that of the run's own data set, the bits are its own."""
    run = RunFolder(tmp_path)
    settings = resolve(dataset="imagenet2012", model="orepa_resnet18", activation_bits=16)
    old = settings.as_dict()
    for name in ("decay", "augment", "batch_size", "input_type", "epochs"):
        del old[name]
    text_files.write_json(run.file("settings.json"), old)
    run.check(settings)
    with pytest.raises(UserError, match="\n  epochs: 120 there, 3 now$"):
        run.check(dataclasses.replace(settings, epochs=3))


def test_readers_share_a_model_while_its_file_stays(tmp_path):
    folder = RunFolder(str(tmp_path))
    inputs = keras.Input((2,))
    for units in (1, 3):
        folder.save_model(keras.Model(inputs, keras.layers.Dense(units)(inputs)), "float.keras")
        model = folder.read_model("float.keras")
        assert model.output_shape == (None, units)
        assert folder.read_model("float.keras") is model
        assert folder.load_model("float.keras") is not model
