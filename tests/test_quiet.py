import os
import subprocess
import sys

import pytest

from repq_tf.quiet import quiet
from tests.train.commands import environment

LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@pytest.mark.parametrize(("level", "shown"), [("3", "after"), ("0", "within after")])
def test_silence_ends_with_the_block(capfd, monkeypatch, level, shown):
    monkeypatch.setenv(LEVEL, level)
    with quiet():
        os.write(2, b"within ")
    os.write(2, b"after")
    assert capfd.readouterr().err == shown


def test_a_failing_block_loses_nothing(capfd, monkeypatch):
    monkeypatch.setenv(LEVEL, "3")
    with pytest.raises(ImportError, match="no such library"), quiet():
        os.write(2, b"cannot open libcudart; ")
        raise ImportError("no such library")
    os.write(2, b"after")
    assert capfd.readouterr().err == "cannot open libcudart; after"


def test_a_process_without_stderr(monkeypatch):
    def closed(descriptor):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setenv(LEVEL, "3")
    monkeypatch.setattr(os, "dup", closed)
    with quiet():
        pass


def test_a_command_prints_its_own_lines_alone():
    done = subprocess.run(
        [sys.executable, "-m", "repq_tf.parity", "a", "b", "--data=c"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: a does not exist\n" and not done.stdout
