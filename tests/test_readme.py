"""The README's Python, run as written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_the_api_example_and_what_builds_on_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in BLOCKS:
        exec(compile(code, str(README), "exec"), names)
    assert (tmp_path / "digits.tflite").stat().st_size > 100_000
    assert "first divergent layer: none" in capsys.readouterr().out
