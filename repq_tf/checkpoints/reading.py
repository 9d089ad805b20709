"""File formats: a checkpoint as a dict of NumPy arrays, read without running anything."""

import os
import pickle
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from repq_tf.files import file_path
from repq_tf.keras_api import Array

# Where training programs put the state dict; averaged weights before the others.
_NESTED = (
    *("state_dict_ema", "model_ema", "params_ema", "ema"),
    *("state_dict", "model_state_dict", "model", "params", "net"),
)

# What wrappers of whole models put before every name.
_WRAPPERS = ("module.", "_orig_mod.")

_UNSAFE = (
    "it is damaged, or holds other Python objects, which are not loaded, because loading them "
    "can run code. If you trust it, write its state dict to a file of its own in PyTorch"
)

# Counters of batch norms and of a profiler, which no output depends on.
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Reads the tensors of a checkpoint.

    Args:
        path: a file whose ending is one of `.pth`, `.pt`, `.tar`, `.bin` (PyTorch),
            `.safetensors`, `.npz`, `.hdf5` and `.h5`.

    Returns:
        A dict from names, without wrappers such as `module.`, to NumPy arrays. Counters are
        left out.

    Raises:
        ValueError: there is no such file, it is of another format or damaged, or it holds
            other things than dense, named tensors.
        ImportError: the package that reads the format is not installed.
    """
    path = file_path(path)
    ending = os.path.splitext(path)[1].lower()
    if ending not in _READERS:
        raise ValueError(f"path must end in one of {', '.join(_READERS)}. Received: {path!r}")
    if not os.path.isfile(path):
        raise ValueError(f"path must be an existing file. Received: {path!r}")
    try:
        content = _state_dict(_READERS[ending](path))
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = _UNSAFE if unsafe else str(error) or type(error).__name__
        raise ValueError(
            f"path must be a whole {ending} file of tensors. Received: {path!r}: {reason}"
        ) from error
    if not content:
        raise ValueError(f"path must hold named tensors. Found none in: {path!r}")
    start = len(_wrapper(content))
    return {
        name[start:]: tensor
        for name, tensor in content.items()
        if name.rpartition(".")[2] not in _COUNTERS
    }


def _state_dict(content: Any) -> dict[str, Array]:
    """The innermost state dict, its tensors as arrays."""
    if not isinstance(content, Mapping):
        return {}
    nested = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
    if nested:  # the first that is not empty
        return next(filter(None, map(_state_dict, nested)), {})
    found = {name: _array(value) for name, value in content.items()}
    arrays = {name: array for name, array in found.items() if array is not None}
    numbers = [name for name in arrays if not isinstance(name, str)]
    if numbers:
        raise ValueError(f"it has tensors without names, such as number {numbers[0]!r}")
    return arrays


def _array(value: Any) -> Array | None:
    """A tensor as a NumPy array; None for anything else."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return value if isinstance(value, np.ndarray) else None


def _wrapper(names: Collection[str]) -> str:
    """What all names begin with that no layer is called."""
    prefix = ""
    while True:
        longer = [prefix + wrapper for wrapper in _WRAPPERS]
        longer = [p for p in longer if all(name.startswith(p) for name in names)]
        if not longer:
            return prefix
        prefix = longer[0]


def _read_torch(path: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path!r} is a PyTorch file; install what reads it with: "
            'pip install "repq_tf[torch]"'
        ) from error
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str) -> dict[str, Array]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            f"{path!r} is a safetensors file; install what reads it with: "
            'pip install "repq_tf[torch]"'
        ) from error
    return load_file(path)


def _read_npz(path: str) -> dict[str, Array]:
    # A damaged file that NumPy opened itself stays open until it is collected.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def _read_hdf5(path: str) -> dict[str, Array]:
    import h5py

    arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays


_READERS = {
    **dict.fromkeys((".pth", ".pt", ".tar", ".bin"), _read_torch),
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    **dict.fromkeys((".hdf5", ".h5"), _read_hdf5),
}
