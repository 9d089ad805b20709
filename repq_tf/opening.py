"""When the public names are imported: before Keras is, or a part of the package that needs it.

Keras finds the classes of a `.keras` file only if they were imported. Whoever imports `repq_tf`
and loads a file has them, as if `repq_tf` had imported everything at once.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_API = "repq_tf.api"
_KERAS = ("keras", "tf_keras")

# What does not need Keras, beside the training program: its parts that do come here too.
LIGHT = (
    _API,
    "repq_tf.__main__",
    "repq_tf.files",
    "repq_tf.files.atomic",
    "repq_tf.files.paths",
    "repq_tf.files.pictures",
    "repq_tf.model_names",
    "repq_tf.opening",
    "repq_tf.parity",
    "repq_tf.parity.__main__",
    "repq_tf.train",
    "repq_tf.version",
)
_TRAINING = "repq_tf.train."


def open_with_keras() -> None:
    """Imports the public names, now if Keras has been imported, else when it is needed."""
    if any(name in sys.modules for name in _KERAS):
        importlib.import_module(_API)
    else:
        sys.meta_path.insert(0, _Opener())


def is_watched(name: str) -> bool:
    """Says whether the public names must be imported before a module."""
    ours = name.startswith("repq_tf.") and not name.startswith(_TRAINING)
    return name in _KERAS or (ours and name not in LIGHT)


class _Opener(MetaPathFinder, Loader):
    """Imports the public names just before the first module that is watched."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns where a watched module lies, to be loaded by this object."""
        if not is_watched(name):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, found), None)
        if spec:
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Imports the public names, then the module as usual, if that has not been done so."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        importlib.import_module(_API)
        module = importlib.import_module(spec.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leaves the module as its own loader made it."""
        module.__spec__ = self._spec
