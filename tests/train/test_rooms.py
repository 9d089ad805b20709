"""The rooms of `train/`: what a file may import."""

import ast
from pathlib import Path

TRAIN = Path(__file__).parents[2] / "train"
# Ground first; a file imports from its own room and from those before it.
ROOMS = ("errors", "settings", "data", "interpreter", "run", "engines", "tasks", "stages")
TASKS = ("classification", "super_resolution")


def modules():
    """Name of each module of `train/` -> the modules of `train/` that it imports, anywhere."""
    files = {}
    for file in TRAIN.rglob("*.py"):
        parts = file.relative_to(TRAIN).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {name: imports(file, files) & set(files) - {name} for name, file in files.items()}


def imports(file, known):
    """The names below `repq_tf.train` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                deep = f"{node.module}.{alias.name}"
                found.add(deep if deep.removeprefix(PREFIX) in known else node.module)
    return {name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)}


PREFIX = "repq_tf.train."


def test_there_is_no_circle():
    left = modules()
    assert len(left) > 50
    while True:
        done = {name for name, needed in left.items() if not needed & set(left)}
        if not done:
            break
        left = {name: needed for name, needed in left.items() if name not in done}
    assert not left, f"a circle among {sorted(left)}"


def test_no_import_climbs():
    def floor(name):
        room = name.split(".")[0]
        return ROOMS.index(room) if room in ROOMS else len(ROOMS)

    for name, needed in modules().items():
        assert all(floor(other) <= floor(name) for other in needed), (name, needed)


def test_tasks_do_not_know_each_other():
    for name, needed in modules().items():
        for task in TASKS:
            if name.startswith(f"tasks.{task}"):
                others = tuple(f"tasks.{other}" for other in TASKS if other != task)
                assert not any(other.startswith(others) for other in needed), (name, needed)
