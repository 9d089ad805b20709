import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from repq_tf.train import main
from tests.train.commands import ROOT, run


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls `main` in this process and returns `(exit status, stdout, stderr)`."""
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)

    def call(*args):
        try:
            main.main(args)
            status = 0
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    "args, words",
    [
        (["--bits=9"], ["--bits", "2 to 8", "9"]),
        (["digits"], ["All arguments are --flags", "'digits'"]),
        (["--dataset=cifar11"], ["--dataset", "cifar11", "cifar10"]),
        (["--dataset=folder:/no/such"], ["folder:PATH", "/no/such"]),
        (["--data_dir=/no/such"], ["--data_dir", "digits"]),
        (["--batch_size=5000"], ["--batch_size", "1437", "5000"]),
        (["--init_from=/"], ["--init_from", "float.keras"]),
        (["--init_from=/etc/hostname"], ["/etc/hostname", ".keras"]),
    ],
)
def test_user_errors_come_before_training_and_change_nothing(call, tmp_path, args, words):
    status, output, errors = call(*args, f"--workdir={tmp_path / 'run'}")
    assert status == 1 and "[float]" not in output
    assert errors.startswith("error: ") and "Traceback" not in errors
    for word in words:
        assert word in errors
    assert not os.path.exists(tmp_path / "run")


def test_an_error_of_the_program_itself(tmp_path):
    output, errors = run("--model=resnet19", f"--workdir={tmp_path / 'run'}", code=1)
    assert not output and errors.startswith("error: --model must be one of")
    for name in ("resnet19", "ac_resnet18", "repvgg_b0"):
        assert name in errors
    assert not os.listdir(tmp_path)


def test_help_and_unknown_flags():
    output, _ = run("--help")
    assert "python train/main.py --model=ac_resnet18 --bits=8" in output
    _, errors = run("--colour=red", code=1)
    assert "Unknown command line flag 'colour'" in errors


def benchmark_rows(name, folder, *given):
    """The flags that a benchmark gives to `main` for each of its rows."""
    program = folder / "main.py"
    figures = {"set5_psnr": 30.0}
    report = {
        "metrics": {"file": figures},
        "references": {"bicubic": figures, "float": figures},
    }
    program.write_text(
        "import json, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[1].removeprefix('--workdir='))\n"
        "folder.mkdir(parents=True)\n"
        f"report = {{**{report!r}, 'arguments': sys.argv[2:]}}\n"
        "(folder / 'report.json').write_text(json.dumps(report))\n"
    )
    start = (
        f"import {name} as benchmark, training_runs; "
        f"training_runs.MAIN = {str(program)!r}; benchmark.app.run(benchmark.main)"
    )
    subprocess.run(
        [sys.executable, "-c", start, f"--workdir={folder}", *given, "--", "--qat_epochs=1"],
        cwd=ROOT / "benchmarks",
        check=True,
        stdout=subprocess.DEVNULL,
    )
    rows = [
        set(json.loads(file.read_text())["arguments"]) for file in folder.glob("*/report.json")
    ]
    assert all("--qat_epochs=1" in row for row in rows)
    return rows


def has_source(row):
    return any(flag.startswith("--init_from=") for flag in row)


@pytest.mark.slow(10)
def test_the_accuracy_benchmark_gives_float_flags_to_float_stages_alone(tmp_path):
    """`main` refuses them beside --init_from."""
    flags = ("--modes=batch", "--epochs=3", "--learning_rate=0.5")
    rows = benchmark_rows("accuracy", tmp_path, *flags)
    assert len(rows) == 6
    assert sum(not has_source(row) for row in rows) == 2  # the plain network and the branches
    for row in rows:
        assert len({"--epochs=3.0", "--learning_rate=0.5"} & row) == (not has_source(row)) * 2


@pytest.mark.slow
def test_the_super_resolution_benchmark_gives_each_row_its_rates(tmp_path):
    flags = ("--train=a", "--test_sets=set5:b", "--bits=8,4", "--qat_rates=plain:0.5,repq:0.25")
    rates = "--float_rates=plain:2,branches:3"
    rows = benchmark_rows("super_resolution", tmp_path, *flags, rates)
    assert len(rows) == 6
    trained = [row for row in rows if not has_source(row)]
    assert len(trained) == 2
    assert all("--learning_rate=2.0" in row for row in trained if "--method=plain" in row)
    assert all("--learning_rate=3.0" in row for row in trained if "--method=plain" not in row)
    quantized = {"plain": {"0.5"}, "merged": set(), "repq": {"0.25"}}
    for row in rows:
        given = dict(flag.removeprefix("--").split("=", 1) for flag in row)
        assert {given.get("qat_learning_rate")} - {None} == quantized[given["method"]]
        assert ("learning_rate" in given) == (not has_source(row))
