"""The house: which room stands on which floor, and that imports only go down.

A room is a module or a folder of `repq_tf/`; `models/` and `train/` are two of them, installed
as `repq_tf.models` and `repq_tf.train`, and `benchmarks/` stands beside the package. From its
path alone one knows what a file may import: its own room, rooms on lower floors and, but for
the faces of a quantized model, a neighbour on its own floor; never in a circle.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Ground first.
FLOORS = (
    # Which Keras; words, files and patience.
    (1, "keras_api model_names quiet text progress version user_warning files"),
    # Two algebras: training's affine kernels, and the runtime's whole numbers.
    (2, "kernels arithmetic"),
    # Grids that learn, padded convolutions, checks of arguments.
    (3, "quantizers windows arguments"),
    # A block's expression, with its readings.
    (4, "branches"),
    # Layers; models as plain data.
    (5, "layers graphs tflite onnx"),
    # Networks, and what is done to the weights of any.
    (6, "models calibration checkpoints distillation optimizers"),
    # From one model to another.
    (7, "quantization reparameterization"),
    # The faces of a quantized model, none of which knows another.
    (8, "callbacks deployment parity inspection post_training tfmot upgrading"),
    # The public names, and when they are imported.
    (9, "repq_tf api opening"),
    # Programs.
    (10, "train benchmarks"),
)
FACES = 8

FOLDERS = {
    "repq_tf": "repq_tf",
    "models": "repq_tf.models",
    "train": "repq_tf.train",
    "benchmarks": "benchmarks",
}


def find_modules(root):
    """The files of the house, `{name of the module: path}`."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def find_imports(modules, name):
    """Yields `(module, imported name or None)` of each import in a file, inside functions too.

    The packages that Python runs on the way to a module do not count.
    """
    path = modules[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((*(above if node.level else ()), *filter(None, [node.module])))
            found = [(base, alias.name) for alias in node.names]
        else:
            continue
        for module, member in found:
            if member is not None and f"{module}.{member}" in modules:
                module, member = f"{module}.{member}", None
            if module in modules and module != name:
                yield module, member


def room_of(name):
    """The room that a module belongs to."""
    package, *inside = name.removesuffix(".__main__").split(".")
    return inside[0] if package == "repq_tf" and inside else package


def find_circles(edges):
    """The circles of a graph, `{node: nodes}`, each as the set of its nodes."""
    reach = {node: set(targets) for node, targets in edges.items()}
    for middle in edges:
        for targets in reach.values():
            if middle in targets:
                targets |= reach.get(middle, set())
    circles = {
        frozenset(other for other in targets if node in reach.get(other, ()))
        for node, targets in reach.items()
        if node in targets
    }
    return sorted(sorted(circle) for circle in circles)


def find_climbs(imports, floors):
    """The imports that the table of floors forbids, as text."""
    climbs = []
    for name, targets in imports.items():
        for target in targets:
            here, there = floors[room_of(name)], floors[room_of(target)]
            face = here == there == FACES and room_of(name) != room_of(target)
            if there > here or face:
                climbs.append(f"{name} ({here}) imports {target} ({there})")
    return sorted(climbs)


@pytest.fixture(scope="module")
def modules():
    return find_modules(ROOT)


@pytest.fixture(scope="module")
def imports(modules):
    return {name: {m for m, _ in find_imports(modules, name)} for name in modules}


@pytest.fixture(scope="module")
def floors():
    return {room: floor for floor, rooms in FLOORS for room in rooms.split()}


def test_the_table_names_every_room(modules, floors):
    assert {room_of(name) for name in modules} == set(floors)


def test_files_import_no_circle(imports):
    assert find_circles(imports) == []


def test_rooms_import_no_circle(imports):
    rooms = {}
    for name, targets in imports.items():
        there = {room_of(target) for target in targets} - {room_of(name)}
        rooms.setdefault(room_of(name), set()).update(there)
    assert find_circles(rooms) == []


def test_imports_go_down(imports, floors):
    assert find_climbs(imports, floors) == []


def test_private_names_stay_in_their_room(modules):
    leaks = [
        f"{name} imports {member} of {target}"
        for name in modules
        for target, member in find_imports(modules, name)
        if member and member.startswith("_") and not member.startswith("__")
        if room_of(name) != room_of(target)
    ]
    assert leaks == []


def test_the_reader_sees_every_form_of_import(tmp_path):
    """Files in which each of the tests above must find something."""
    files = {
        "repq_tf/__init__.py": "",
        "repq_tf/kernels.py": "def f():\n    from repq_tf import layers",
        "repq_tf/layers/__init__.py": "from repq_tf.layers.plain import Plain",
        "repq_tf/layers/plain.py": "from . import other\nfrom repq_tf.graphs import _read",
        "repq_tf/layers/other.py": "from .plain import Plain",
        "repq_tf/graphs.py": "import repq_tf.layers.plain\nimport os, keras",
        "repq_tf/parity/__main__.py": "from repq_tf.deployment import export",
        "repq_tf/__main__.py": "import repq_tf.train.main",
        "repq_tf/deployment/__init__.py": "",
        "repq_tf/deployment/export.py": "from repq_tf.models import build",
        "models/__init__.py": "from repq_tf.train.main import run",
        "train/main.py": "import repq_tf",
        "benchmarks/time.py": "from repq_tf.train import main",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content, "utf-8")
    modules = find_modules(tmp_path)
    imports = {name: {m for m, _ in find_imports(modules, name)} for name in modules}
    floors = {room: floor for floor, rooms in FLOORS for room in rooms.split()}
    assert imports["repq_tf.layers.plain"] == {"repq_tf.layers.other", "repq_tf.graphs"}
    assert imports["benchmarks.time"] == {"repq_tf.train.main"}
    assert ("repq_tf.graphs", "_read") in find_imports(modules, "repq_tf.layers.plain")
    assert find_circles(imports) == [
        ["repq_tf.graphs", "repq_tf.layers.other", "repq_tf.layers.plain"]
    ]
    assert find_climbs(imports, floors) == [
        "repq_tf.__main__ (9) imports repq_tf.train.main (10)",
        "repq_tf.kernels (2) imports repq_tf.layers (5)",
        "repq_tf.models (6) imports repq_tf.train.main (10)",
        "repq_tf.parity.__main__ (8) imports repq_tf.deployment.export (8)",
    ]
