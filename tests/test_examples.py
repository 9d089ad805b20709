"""The notebooks of `examples/`: they run, and what they showed is kept.

`python -m tests.test_examples` runs them and keeps what they show.
"""

import tempfile
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))


def run(path, folder):
    """Returns a notebook that has been run in a folder, without the log of its kernel."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": 300, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, resources=resources, **options).execute()
    for cell in code(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_it_showed(path):
    cells = code(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)


@pytest.mark.slow(15)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    shown = [
        [{output.output_type for output in cell.outputs} for cell in code(notebook)]
        for notebook in (run(path, tmp_path), nbformat.read(path, as_version=4))
    ]
    assert shown[0] == shown[1]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(path, folder), path)
