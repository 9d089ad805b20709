import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from repq_tf import models
from repq_tf.train.engines import choose, mirrored
from repq_tf.train.engines.base import Engine
from repq_tf.train.engines.batches import even_batch
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint
from repq_tf.train.run.records import read_history
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from repq_tf.train.stages.training import train
from repq_tf.train.tasks.base import Task
from repq_tf.train.tasks.classification.arrays import ArrayDataset, EvaluationDataset
from tests import forks


class _Blocks(Task):
    """A few steps of a small network of blocks."""

    headline = "loss"
    steps_per_epoch = 4

    def __init__(self):
        rng = np.random.default_rng(0)
        self.data = rng.integers(0, 256, (45, 8, 8, 1)).astype("uint8"), rng.integers(0, 3, 45)

    def build(self, name="repvgg_a0", **options):
        keras.utils.set_random_seed(0)
        from repq_tf.layers import ACBlock

        inputs = keras.Input((8, 8, 1), name="image")
        x = ACBlock(8, 3, activation="relu", name="first", **options)(inputs)
        x = ACBlock(8, 3, strides=2, activation="relu", name="second", **options)(x)
        x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
        return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x), name=name)

    def compile(self, model, optimizer=None, jit_compile="auto"):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer or "sgd", loss, jit_compile=jit_compile)

    def train_batches(self, epoch, steps, shard=(0, 1)):
        return ArrayDataset(*self.data, 10, (8, 8), "crop", epoch=epoch, steps=steps)

    def validation_batches(self, devices=1):
        return EvaluationDataset(*self.data, even_batch(45, 11, devices), (8, 8))

    def calibration_data(self, count):
        raise NotImplementedError

    test_inputs = evaluate_file = describe = calibration_data


def _train(folder, strategy, epochs=2):
    task, run = _Blocks(), RunFolder(folder)
    os.makedirs(run.path, exist_ok=True)
    engine = mirrored.Mirrored(strategy) if strategy else Engine()
    with engine.scope():
        model = task.build(synchronized=True)
        train(model, task, resolve(verbose=0), run, "float", epochs, 0.05, engine)
    return model, run


@pytest.fixture(scope="module")
def strategy(two_replicas):
    return two_replicas


@pytest.fixture(scope="module")
def trained(strategy, tmp_path_factory):
    """A model trained on two devices and its run, to be left as they are."""
    return _train(tmp_path_factory.mktemp("trained") / "run", strategy)


@pytest.mark.slow(10)
def test_two_devices_train_what_one_trains(tmp_path, trained):
    one, run = _train(tmp_path / "one", None)
    two, other = trained
    history, again = (read_history(r.history("float")) for r in (run, other))
    for name, values in history.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-3, err_msg=name)
    moved = 0
    fresh = _Blocks().build(synchronized=True).weights
    for a, b, start in zip(one.weights, two.weights, fresh, strict=True):
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=start.path)
        moved += not np.array_equal(a, keras.ops.convert_to_numpy(start))
    assert moved == len(fresh)


@pytest.mark.slow(10)
def test_replicas_hold_the_same_statistics(trained, strategy):
    model, _ = trained
    copies = {
        variable.path: [v.numpy() for v in strategy.experimental_local_results(variable.value)]
        for variable in model.weights
    }
    statistics = [path for path in copies if "moving" in path]
    assert len(statistics) >= 12
    for path, (first, second) in copies.items():
        np.testing.assert_array_equal(first, second, err_msg=path)


@pytest.mark.slow(10)
def test_what_is_saved_is_what_was_trained(trained):
    model, run = trained
    path = run.file("float.keras")
    checkpoint.save_model(model, path)
    loaded = checkpoint.load_model(path)
    for a, b in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b), err_msg=a.path
        )
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("float32")
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6
    )


@pytest.mark.slow(20)
def test_two_devices_continue_where_they_stopped(tmp_path, trained, strategy):
    whole, _ = trained
    task, run = _Blocks(), RunFolder(tmp_path / "stopped")
    os.makedirs(run.path)

    def stop(model):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    calls = []
    with pytest.raises(KeyboardInterrupt), strategy.scope():
        model = task.build(synchronized=True)
        engine = mirrored.Mirrored(strategy)
        train(model, task, resolve(verbose=0), run, "float", 2, 0.05, engine, stop)
    again, _ = _train(tmp_path / "stopped", strategy, epochs=2)
    for a, b in zip(whole.weights, again.weights, strict=True):
        a, b = (keras.ops.convert_to_numpy(v) for v in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_every_device_gets_its_share_of_every_evaluation_batch(devices):
    for count in range(6 * devices, 90):
        size = even_batch(count, 16 * devices, devices)
        assert 0 < size <= 16 * devices and size % devices == 0 and size <= count
        assert count % size == 0 or count % size >= devices


def test_no_device_is_without_an_input_in_the_last_batch():
    """TensorFlow would share 10 inputs by 8 devices as 2, 2, 2, 2, 2, 0, 0, 0."""

    class Eight:
        """Eight devices, and the pieces in the order in which they get them."""

        num_replicas_in_sync = 8

        def distribute_datasets_from_function(self, function):
            return function(None)

    data = np.arange(74 * 4).reshape(74, 2, 2, 1).astype("uint8"), np.arange(74)
    tests = EvaluationDataset(*data, 64, (2, 2))
    found = mirrored.Mirrored(Eight()).fit_data(tests, tests)
    images, labels = zip(*found["validation_data"].as_numpy_iterator(), strict=True)
    assert found["validation_steps"] == 2
    assert [len(piece) for piece in labels] == 8 * [8] + [1, 1, 1, 2, 1, 1, 1, 2]
    np.testing.assert_array_equal(np.concatenate(labels), data[1])
    np.testing.assert_array_equal(
        np.concatenate(images), np.concatenate([tests[0][0], tests[1][0]])
    )


def test_too_few_images_for_the_devices():
    with pytest.raises(UserError, match="3 test images cannot be shared by 2 devices"):
        even_batch(3, 8, 2)


def test_which_engine_is_made():
    for name in ("none", "auto"):  # there is no GPU in the tests
        engine = choose.make_engine(name)
        assert type(engine) is Engine
        assert (engine.devices, engine.workers, engine.is_chief) == (1, 1, True)
    mirrored = choose.make_engine("mirrored")
    assert isinstance(mirrored.strategy, tf.distribute.MirroredStrategy)
    assert mirrored.devices == 2


@pytest.mark.parametrize(
    "backend, name, words",
    [
        ("jax", "mirrored", ["KERAS_BACKEND=tensorflow", "KERAS_BACKEND=jax", "data_parallel"]),
        ("tensorflow", "data_parallel", ["KERAS_BACKEND=jax", "--strategy=mirrored"]),
        ("tensorflow", "multi_worker", ["TF_USE_LEGACY_KERAS=1", "KERAS_BACKEND=jax"]),
    ],
)
def test_an_engine_that_the_backend_does_not_have(monkeypatch, backend, name, words):
    monkeypatch.setattr(choose, "backend", lambda: backend)
    with pytest.raises(UserError, match=f"--strategy={name}") as error:
        choose.make_engine(name)
    assert all(word in str(error.value) for word in words)


def test_models_take_the_option_that_synchronizes():
    model = models.build("resnet18", 3, (8, 8, 1), width=0.125, synchronized=True)
    assert all(b.synchronized for b in model.layers if hasattr(b, "synchronized"))


@pytest.mark.slow(60)
def test_losses_of_quantized_training_do_not_depend_on_the_number_of_devices():
    """In float64, where no rounding error moves a value to another level."""
    code = "import runpy; runpy.run_path('benchmarks/devices.py', run_name='__main__')"
    flags = ["--modes=batch,sample", "--steps=12", "--dtype=float64"]
    losses = {}
    for devices in (1, 2, 4):
        status, output, errors = forks.run(code, *flags, f"--only={devices}")
        assert status == 0, errors[-3000:]
        losses[devices] = json.loads(output.splitlines()[-1])
    for mode, one in losses[1].items():
        assert len(one) == 12 and one[-1] < one[0]
        for devices in (2, 4):
            np.testing.assert_allclose(losses[devices][mode], one, rtol=1e-12, err_msg=mode)
