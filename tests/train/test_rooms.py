"""The rooms of `train/`: what a file may import. Circles are looked for in the whole house."""

import pytest

from tests.test_floors import ROOT, find_imports, find_modules

# Ground first; a file imports from its own room and from those before it.
ROOMS = ("errors", "settings", "data", "interpreter", "run", "engines", "tasks", "stages")
TASKS = ("classification", "super_resolution")
PREFIX = "repq_tf.train."


@pytest.fixture(scope="module")
def imports():
    """Name of each module of `train/` -> the modules of `train/` that it imports, anywhere."""
    modules = find_modules(ROOT)
    return {
        name.removeprefix(PREFIX): {
            target.removeprefix(PREFIX)
            for target, _ in find_imports(modules, name)
            if target.startswith(PREFIX)
        }
        for name in modules
        if name.startswith(PREFIX)
    }


def test_no_import_climbs(imports):
    def floor(name):
        room = name.split(".")[0]
        return ROOMS.index(room) if room in ROOMS else len(ROOMS)

    assert len(imports) > 50
    for name, needed in imports.items():
        assert all(floor(other) <= floor(name) for other in needed), (name, needed)


def test_tasks_do_not_know_each_other(imports):
    for name, needed in imports.items():
        for task in TASKS:
            if name.startswith(f"tasks.{task}"):
                others = tuple(f"tasks.{other}" for other in TASKS if other != task)
                assert not any(other.startswith(others) for other in needed), (name, needed)
