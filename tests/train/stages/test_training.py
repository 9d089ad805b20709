import dataclasses
import io
import os

import keras
import numpy as np
import pytest
from PIL import Image

from repq_tf.layers import ConvBlock
from repq_tf.train.errors import DivergedError
from repq_tf.train.run import records
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from repq_tf.train.stages.optimizer import is_decayed, make_optimizer
from repq_tf.train.stages.training import train
from repq_tf.train.tasks.base import Task
from repq_tf.train.tasks.classification.arrays import ArrayDataset, EvaluationDataset

SETTINGS = resolve(verbose=0)


class _Toy(Task):
    """Five steps an epoch; `bad` is a step (epoch, index) whose loss is NaN."""

    headline = "accuracy"
    steps_per_epoch = 5

    def __init__(self, bad=None):
        rng = np.random.default_rng(0)
        self.data = rng.integers(0, 256, (42, 8, 8, 1)).astype("uint8"), rng.integers(0, 3, 42)
        self.bad = bad
        self.epochs = []

    def build(self, name="toy"):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
        x = keras.layers.BatchNormalization(name="norm", momentum=0.5)(x)
        x = keras.layers.Dropout(0.2, name="drop")(keras.layers.Flatten(name="flat")(x))
        return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x), name=name)

    def compile(self, model, optimizer=None, jit_compile="auto"):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer or "sgd", loss, metrics=["accuracy"])

    def train_batches(self, epoch, steps, shard=(0, 1)):
        self.epochs.append((epoch, steps))
        data = ArrayDataset(*self.data, 8, (8, 8), "crop", epoch=epoch, steps=steps)
        return _Poisoned(data, self.bad[1]) if self.bad and self.bad[0] == epoch else data

    def validation_batches(self, devices=1):
        return EvaluationDataset(*self.data, 16, (8, 8))

    def calibration_data(self, count):
        raise NotImplementedError

    test_inputs = evaluate_file = describe = calibration_data


class _Poisoned(keras.utils.PyDataset):
    def __init__(self, data, index):
        super().__init__()
        self.data, self.index = data, index

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        images, labels = self.data[index]
        return (images * np.nan if index == self.index else images), labels


class _Killed(Exception):
    pass


def _run(folder, epochs, task=None, scalars=None, teacher=None):
    task = task or _Toy()
    model = task.build()
    run = RunFolder(folder)
    os.makedirs(run.path, exist_ok=True)
    seconds = train(
        model, task, SETTINGS, run, "float", epochs, 0.05, scalars=scalars, teacher=teacher
    )
    return model, run, seconds


def _read(path):
    with open(path) as file:
        return file.read()


@pytest.mark.slow
@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_killed_stage_ends_where_it_would_have_ended(tmp_path, killed_in):
    """Taught by another network or by labels alone."""
    options = {"teacher": _Toy().build() if killed_in == 2 else None}
    whole, run, _ = _run(tmp_path / "whole", 3.4, **options)

    def kill(model):
        calls.append(1)
        if len(calls) == killed_in:
            raise _Killed  # after the epoch's training, before its state is written
        return {"some/number": 1.0}

    calls = []
    with pytest.raises(_Killed):
        _run(tmp_path / "killed", 3.4, scalars=kill, **options)
    again, other, _ = _run(tmp_path / "killed", 3.4, **options)
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert _read(run.history("float")) == _read(other.history("float"))
    history = records.read_history(run.history("float"))
    assert history["epoch"] == [1, 2, 3, 4]
    assert history["learning_rate"][-1] == 0
    assert set(history) == {
        "epoch",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
    }


@pytest.mark.slow
def test_the_last_epoch_may_be_a_fraction(tmp_path):
    task = _Toy()
    model, _, _ = _run(tmp_path, 2.4, task)
    assert task.epochs == [(0, 5), (1, 5), (2, 2)]
    assert int(model.optimizer.iterations) == 12


@pytest.mark.slow
def test_a_finished_stage_is_not_trained_again(tmp_path):
    first, _, seconds = _run(tmp_path, 2)
    task = _Toy()
    again, _, remembered = _run(tmp_path, 2, task)
    assert not task.epochs
    assert remembered == seconds > 0
    np.testing.assert_array_equal(first.get_weights()[0], again.get_weights()[0])


def test_no_epochs_leave_the_model_alone(tmp_path):
    model, run, _ = _run(tmp_path, 0)
    np.testing.assert_array_equal(model.get_weights()[0], _Toy().build().get_weights()[0])
    assert records.read_history(run.history("float")) == {}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(DivergedError) as error:
        _run(tmp_path, 4, _Toy(bad=(2, 1)))
    for word in ("nan", "step 12", "epoch 3", "stage float", str(tmp_path / "state_float.npz")):
        assert word in str(error.value)
    history = records.read_history(RunFolder(tmp_path).history("float"))
    assert history["epoch"] == [1, 2]
    _, run, _ = _run(tmp_path, 4)
    assert records.read_history(run.history("float"))["epoch"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_the_first_epoch(tmp_path):
    with pytest.raises(DivergedError, match="step 1 .*no checkpoint yet"):
        _run(tmp_path, 4, _Toy(bad=(0, 0)))


@pytest.mark.slow
def test_weights_that_are_not_finite_are_never_saved_as_good(tmp_path):
    with pytest.raises(DivergedError, match="The weight .*last step|The weight .*not finite"):
        _run(tmp_path, 2, _Burst())
    assert not os.path.exists(RunFolder(tmp_path).state("float"))


class _Burst(_Toy):
    """Its moving mean overflows in the first epoch, while the loss is still finite."""

    def build(self, name="toy"):
        model = super().build(name)
        model.get_layer("norm").moving_mean.assign([np.inf] * 4)
        return model


@pytest.mark.slow
def test_records_can_be_read_by_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(model):
        calls.append(1)
        if len(calls) == 3:
            raise _Killed
        return {"step/conv/weight": 0.5 * len(calls)}

    calls = []
    with pytest.raises(_Killed):
        _run(tmp_path, 3, scalars=scalars)
    _, run, _ = _run(tmp_path, 3, scalars=lambda model: {"step/conv/weight": 1.5})
    events = EventAccumulator(os.path.join(run.logs, "float"))
    events.Reload()
    assert {"loss", "val_accuracy", "learning_rate"} < set(events.Tags()["scalars"])
    points = [(e.step, e.value) for e in events.Scalars("step/conv/weight")]
    assert points == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.slow
def test_pictures_survive_an_interruption(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Showing(_Toy):
        def pictures(self, model):
            shade = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
            return {"some": np.full((4, 6, 1), shade, "uint8")}

    def kill(model):
        if int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 10:
            raise _Killed
        return {}

    with pytest.raises(_Killed):
        _run(tmp_path, 3, Showing(), kill)
    _, run, _ = _run(tmp_path, 3, Showing())
    folder = os.path.join(run.logs, "float_pictures")
    events = EventAccumulator(folder, {"images": 0}).Reload()
    assert events.Tags()["images"] == ["some"]
    found = events.Images("some")
    assert [event.step for event in found] == [1, 2, 3]
    shades = [
        np.unique(keras.utils.img_to_array(Image.open(io.BytesIO(e.encoded_image_string))))
        for e in found
    ]
    np.testing.assert_array_equal(np.concatenate(shades), [5, 10, 15])


def test_only_kernels_are_decayed_unless_the_recipe_says_all():
    spared = ["c/bias", "n/gamma", "n/beta", "c/weight_quantizer/log_step", "c/step"]
    assert is_decayed("block/square/kernel", "kernels")
    assert not is_decayed("block/origin_scale/gain", "kernels")
    assert is_decayed("block/origin_scale/gain", "gains")
    assert not any(is_decayed(path, "gains") for path in spared)
    assert not any(is_decayed(path, "kernels") for path in spared)
    assert all(is_decayed(path, "all") for path in ("c/kernel", *spared[:3]))
    assert not any(is_decayed(path, "all") for path in spared[3:])


@pytest.mark.slow
def test_decay_is_as_fast_as_in_the_papers():
    model = _Toy().build()
    model.get_layer("norm").gamma.assign(np.full(4, 2.0))
    kernel = model.get_layer("conv").get_weights()[0]
    steps, rate, decay = 400, 0.01, 0.05
    optimizer = make_optimizer(model, rate, steps, weight_decay=decay)
    paper, speed = kernel.copy(), 0.0  # SGD with `decay * weight` in the gradient
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    for _ in range(steps):
        speed = 0.9 * speed - float(optimizer.learning_rate) * decay * paper
        optimizer.apply(zeros, model.trainable_variables)
        paper = paper + speed
    np.testing.assert_allclose(model.get_layer("conv").kernel, paper, rtol=5e-2)
    np.testing.assert_array_equal(model.get_layer("norm").gamma, np.full(4, 2.0))
    assert abs(paper).max() < 0.5 * abs(kernel).max()


def test_the_learning_rate_rises_and_falls_to_zero():
    model = _Toy().build()
    optimizer = make_optimizer(model, 0.4, steps=20, warmup_steps=4)
    rates = []
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    for _ in range(21):
        rates.append(float(optimizer.learning_rate))
        optimizer.apply(zeros, model.trainable_variables)
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[4] == pytest.approx(0.4)
    assert rates[:5] == sorted(rates[:5]) and rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[20] == 0
    again = keras.optimizers.SGD.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


def test_settings_are_what_the_stage_is_trained_with():
    model = _Toy().build()
    spared = dataclasses.replace(SETTINGS, weight_decay=0.0)
    optimizer = make_optimizer(model, 0.1, 10, weight_decay=spared.weight_decay)
    assert optimizer.weight_decay is None


def test_adam_at_a_constant_rate_is_keras_own(rng):
    mine, other = _Toy().build(), _Toy().build()
    optimizers = (
        make_optimizer(mine, 0.01, 20, kind="adam", schedule="constant"),
        (keras.optimizers.Adam(0.01)),
    )
    for _ in range(3):
        gradients = [rng.normal(size=v.shape) for v in mine.trainable_variables]
        for model, optimizer in zip((mine, other), optimizers, strict=True):
            tensors = [keras.ops.convert_to_tensor(g, "float32") for g in gradients]
            optimizer.apply(tensors, model.trainable_variables)
    for a, b in zip(mine.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    decayed = make_optimizer(mine, 0.01, 20, weight_decay=0.1, kind="adam")
    assert decayed.weight_decay == 0.1  # decoupled, as Keras means it
    assert float(decayed.learning_rate) == pytest.approx(0.01)
    gamma = mine.get_layer("norm").gamma
    before = np.array(gamma)
    zeros = [keras.ops.zeros_like(v) for v in mine.trainable_variables]
    decayed.apply(zeros, mine.trainable_variables)
    np.testing.assert_array_equal(gamma, before)


@pytest.mark.parametrize(("kind", "factor"), [("sgd", 0.1), ("adam", 0.1)])
def test_steps_have_a_rate_of_their_own(kind, factor):
    """Beside it, all else is what it was: a step of one and the same gradients."""
    ends = []
    for rate in (1.0, factor):
        block = ConvBlock(3, weight_bits=4)
        model = keras.Sequential([keras.Input((6, 6, 2)), block])
        block.inner.kernel.assign(np.linspace(-1, 1, 54).reshape(3, 3, 2, 3))
        optimizer = make_optimizer(
            model, 0.01, 20, kind=kind, schedule="constant", step_rate=rate
        )
        before = {v.path.split("/")[-1]: np.array(v) for v in model.trainable_variables}
        gradients = [keras.ops.ones_like(v) for v in model.trainable_variables]
        optimizer.apply(gradients, model.trainable_variables)
        after = {v.path.split("/")[-1]: np.array(v) for v in model.trainable_variables}
        ends.append({name: after[name] - value for name, value in before.items()})
    assert set(ends[0]) >= {"kernel", "step_change"}
    for name, moved in ends[0].items():
        ratio = factor if name == "step_change" else 1
        assert np.abs(moved).max() > 1e-3
        np.testing.assert_allclose(ends[1][name], ratio * moved, rtol=1e-4)
