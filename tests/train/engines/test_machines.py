"""Two processes on the loopback interface train what one trains."""

import numpy as np
import pytest

from repq_tf.train.engines import choose
from repq_tf.train.engines.base import Engine
from repq_tf.train.errors import UserError
from repq_tf.train.run import checkpoint, run_folder
from repq_tf.train.run.records import read_history
from repq_tf.train.run.run_folder import RunFolder
from repq_tf.train.settings import resolve
from tests.train.workers import jax_cluster, run_workers, tensorflow_cluster, trained_weights

CLUSTERS = {"multi_worker": tensorflow_cluster, "data_parallel": jax_cluster}

# Without augmentation, which workers draw for themselves, the global batches are those of one.
ARGS = ["--model=tiny_ac", "--augment=none", "--batch_size=128", "--epochs=2", "--qat_epochs=1"]
ARGS += ["--bn_statistics=batch", "--calibration_images=64", "--verbose=0"]


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request, tmp_path_factory):
    """An engine, its environments, and the folder of a whole run of two workers."""
    name, make = request.param, CLUSTERS[request.param]
    folder = tmp_path_factory.mktemp(name) / "run"
    run_workers(make(2), folder, *ARGS, f"--strategy={name}")
    return name, make, folder


@pytest.mark.slow(70)
def test_both_workers_end_with_the_same_weights(cluster):
    _, _, folder = cluster
    for stage in ("float", "qat"):
        first, second = (trained_weights(folder, stage, worker) for worker in (0, 1))
        assert len(first) > 20
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_what_is_saved_is_what_was_trained(cluster):
    name, _, folder = cluster
    for stage, product in (("float", run_folder.FLOAT), ("qat", run_folder.QUANTIZED)):
        if name == "data_parallel":  # a file of tf_keras is read by tf_keras
            weights = checkpoint.load_model(str(folder / product)).get_weights()
            for a, b in zip(weights, trained_weights(folder, stage), strict=True):
                np.testing.assert_array_equal(a, b)
    assert (folder / "report.json").exists()
    assert (folder / run_folder.FILE).exists()


@pytest.mark.slow(20)
def test_two_workers_train_what_one_trains(cluster, tmp_path):
    _, make, folder = cluster
    run_workers(make(1), tmp_path / "run", *ARGS, "--strategy=none", last="qat")
    # Quantized training can round a value up here and down there.
    for stage, of_weights, of_losses in (("float", 1e-5, 1e-5), ("qat", 2e-2, 2e-3)):
        one, two = (trained_weights(f, stage) for f in (tmp_path / "run", folder))
        for a, b in zip(one, two, strict=True):
            assert np.abs(a - b).max() <= of_weights * max(1, np.abs(a).max())
        one, two = (
            read_history(RunFolder(f).history(stage)) for f in (tmp_path / "run", folder)
        )
        for column in ("loss", "val_loss"):
            np.testing.assert_allclose(one[column], two[column], rtol=of_losses)


@pytest.mark.slow(60)
def test_two_workers_continue_where_they_were_killed(cluster, tmp_path):
    name, make, folder = cluster
    again = tmp_path / "run"
    args = [*ARGS, f"--strategy={name}"]
    run_workers(make(2), again, *args, until=RunFolder(again).state("float"))
    assert not (again / run_folder.FLOAT).exists()
    run_workers(make(2), again, *args, last="float")
    one, two = (trained_weights(f, "float") for f in (again, folder))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow(10)
def test_two_devices_of_one_process_train_what_two_processes_train(cluster, tmp_path):
    name, make, folder = cluster
    if name == "multi_worker":
        pytest.skip("the devices of one machine are those of MirroredStrategy")
    args = [*ARGS, "--strategy=data_parallel"]
    run_workers(make(1, devices=2), tmp_path / "run", *args, last="float")
    one, two = (trained_weights(f, "float") for f in (tmp_path / "run", folder))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_machines_must_be_described(monkeypatch, text):
    monkeypatch.setattr(choose, "LEGACY", True)
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG, for example.*Received") as error:
        choose.make_engine("multi_worker")
    assert repr(text) in str(error.value)


def test_other_machines_must_see_the_folder(tmp_path):
    settings = resolve(workdir=str(tmp_path / "run"))
    folder = RunFolder(settings.workdir)
    with pytest.raises(UserError, match="file system that all machines share"):
        folder.join(settings)
    folder.claim(settings)
    folder.join(settings)
    with pytest.raises(UserError, match="bits: 8 there, 4 now"):
        folder.join(resolve(workdir=str(tmp_path / "run"), bits=4))


def test_jax_always_synchronizes_batch_norm():
    with pytest.raises(UserError, match="--sync_bn=false"):
        resolve(strategy="data_parallel", sync_bn=False)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_takes_its_part_of_a_batch(worker):
    engine = Engine()
    engine.devices, engine.workers, engine.worker = 4, 2, worker
    images, labels = np.arange(11), np.arange(11, 22)
    part = engine._part((images, labels), 11)  # 2 for each device; 3 are left out
    np.testing.assert_array_equal(part[0], np.arange(4) + 4 * worker)
    np.testing.assert_array_equal(part[1], part[0] + 11)
