"""File formats and what training programs put around a state dict."""

import os
import pickle

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from repq_tf.checkpoints.reading import read_checkpoint

WEIGHTS = {
    "stem.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "stem.bias": np.ones(2, "float32"),
}


def as_torch(prefix=""):
    return {f"{prefix}{name}": torch.from_numpy(array) for name, array in WEIGHTS.items()}


def assert_read(path, wanted=WEIGHTS):
    read = read_checkpoint(path)
    assert sorted(read) == sorted(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pth.tar", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch(ending, zipped, tmp_path):
    path = tmp_path / f"weights{ending}"
    torch.save(as_torch(), path, _use_new_zipfile_serialization=zipped)
    assert_read(path)


def test_other_formats(tmp_path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **WEIGHTS)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, array in WEIGHTS.items():
            file[name] = array
    torch.save(as_torch(), tmp_path / "a.pth")
    for ending in ("safetensors", "npz", "hdf5", "pth"):
        path = tmp_path / f"a.{ending}"
        assert_read(path)
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], b"<html>", b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"whole \.{ending} file .*a\.{ending}': .+"):
                read_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": torch.eye(2).to_sparse()}, "Sparse"),
        ({"a": torch.ones(2), 3: torch.ones(2)}, "without names, such as number 3"),
    ],
)
def test_tensors_that_are_no_weights(tensors, message, tmp_path):
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth': .*{message}"):
        read_checkpoint(tmp_path / "a.pth")


def test_wrappers_of_training_programs(tmp_path):
    path = tmp_path / "weights.pth"
    for key in ("state_dict", "model", "params", "state_dict_ema", "model_ema"):
        content = {key: as_torch("module."), "epoch": 7, "best_acc1": torch.tensor(70.0)}
        torch.save({**content, "optimizer": {"state": {0: torch.ones(3)}}}, path)
        assert_read(path)
    torch.save({"model": {"state_dict": as_torch("module._orig_mod.")}}, path)
    assert_read(path)


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({**as_torch("module."), "other": torch.zeros(1)}, path)
    wanted = {f"module.{name}": array for name, array in WEIGHTS.items()}
    assert_read(path, {**wanted, "other": np.zeros(1)})


def test_averaged_weights_come_first(tmp_path):
    other = {name: tensor + 1 for name, tensor in as_torch().items()}
    torch.save({"state_dict": other, "state_dict_ema": as_torch()}, tmp_path / "weights.pth")
    assert_read(tmp_path / "weights.pth")
    torch.save({"state_dict": as_torch(), "state_dict_ema": {}}, tmp_path / "weights.pth")
    assert_read(tmp_path / "weights.pth")


def test_counters_are_left_out(tmp_path):
    counters = {
        "bn.num_batches_tracked": torch.tensor(9),
        "stem.total_ops": torch.zeros(1),
        "total_params": torch.zeros(1),
    }
    torch.save({**as_torch(), **counters}, tmp_path / "weights.pth")
    assert_read(tmp_path / "weights.pth")


def test_half_precision(tmp_path):
    content = {name: tensor.bfloat16() for name, tensor in as_torch().items()}
    torch.save(content, tmp_path / "weights.pth")
    assert_read(tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth")["stem.weight"].dtype == np.float32


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("kind", ["zipped", "plain", "raw", "npz"])
def test_nothing_in_a_file_is_run(kind, tmp_path):
    folder = str(tmp_path / "made")
    path = tmp_path / ("weights.npz" if kind == "npz" else "weights.pth")
    content = {**as_torch(), "trap": Trap(folder)}
    if kind == "raw":
        path.write_bytes(pickle.dumps({"trap": Trap(folder)}, protocol=2))
    elif kind == "npz":
        np.savez(path, trap=np.array([Trap(folder)], dtype=object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zipped")
    with pytest.raises(ValueError, match="path must"):
        read_checkpoint(path)
    assert not os.path.exists(folder)
    if kind == "raw":  # the trap does work
        pickle.loads(path.read_bytes())
        assert os.path.exists(folder)


def test_bad_paths(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \.pth"):
        read_checkpoint(tmp_path / "weights.onnx")
    with pytest.raises(ValueError, match="existing file"):
        read_checkpoint(tmp_path / "weights.pth")
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="named tensors"):
        read_checkpoint(tmp_path / "weights.pth")
    torch.save([torch.ones(2)], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="named tensors"):
        read_checkpoint(tmp_path / "weights.pth")


def test_missing_packages_are_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ImportError, match=r"repq_tf\[torch\]"):
            read_checkpoint(tmp_path / name)
