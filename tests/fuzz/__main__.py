"""Random networks and random command lines: each works exactly, or refuses by name.

    python -m tests.fuzz --examples=200 --commands=20

Networks are drawn by hypothesis and run in a process of their own, so that a crash of the
converter or the interpreter is seen and named. Command lines are random flags of
`train/main.py`: exit status 0 with parity in the report, or 1 with one line of `error:`.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
MAIN = Path(__file__).parent.parent.parent / "train" / "main.py"

CHOICES = {
    "model": ["ac_resnet18", "repvgg_a0", "qarepvgg_a0", "orepa_resnet18", "resnet19"],
    "method": ["repq", "repq", "merged", "plain", "best"],
    "bits": ["8", "4", "2", "1", "9", "eight"],
    "bn_statistics": ["restored", "batch", "estimate", "sample", "running", "exact"],
    "image_size": ["8", "16", "0", "-3"],
    "batch_size": ["64", "97", "0", "99999"],
    "epochs": ["0.1", "0.05", "0", "-1", "nan"],
    "qat_epochs": ["0.1", "0"],
    "learning_rate": ["0.01", "0", "-0.1", "1e9"],
    "mixed_precision": ["none", "bfloat16", "float64"],
    "calibration_images": ["16", "0", "100000"],
    "init_from": ["/no/such/file", "/etc/hostname"],
    "dataset": ["digits", "digits", "folder:/no/such", "no_such_set"],
    "strategy": ["none", "auto", "sharded"],
}


def fuzz_networks(count):
    """Runs in the child: prints what it is about to do, then how it ended."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from tests.fuzz.check import SETTINGS, check, describe
    from tests.fuzz.models import network

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        model, options = network(data.draw), data.draw(SETTINGS)
        print(json.dumps({"case": describe(model, options)}), flush=True)
        print(json.dumps({"verdict": check(model, options)}), flush=True)

    run()


def networks(count):
    """Counts the verdicts of random networks; returns whether none failed."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", f"--child={count}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    verdicts, case = collections.Counter(), None
    for line in child.stdout:
        if not line.startswith("{"):
            continue
        entry = json.loads(line)
        case = entry.get("case", case)
        if "verdict" in entry:
            kind, _, message = entry["verdict"].partition(": ")
            verdicts[kind] += 1
            if kind == "refused":
                print(f"refused: {message}")
    status = child.wait()
    print(f"networks: {dict(verdicts)}")
    if status:
        print(f"FAILED with status {status} at: {case}")
    return status == 0


def commands(count, seed):
    """Runs random command lines; returns whether each did what it must."""
    rng, good = random.Random(seed), True
    for _ in range(count):
        names = rng.sample(sorted(CHOICES), rng.randint(1, 4))
        drawn = {name: rng.choice(CHOICES[name]) for name in names}
        defaults = {"width": "0.125", "epochs": "0.05", "qat_epochs": "0.05", "verbose": "0"}
        arguments = [f"--{name}={value}" for name, value in {**defaults, **drawn}.items()]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, str(MAIN), *arguments, f"--workdir={folder}/run"],
                capture_output=True,
                text=True,
            )
            report = Path(folder) / "run" / "report.json"
            if done.returncode == 0:
                parity = json.loads(report.read_text(encoding="utf-8"))["parity"]
                fine = parity["largest_difference"] == 0
                verdict = "exact" if fine else f"NOT EXACT: {parity}"
            else:
                fine = "Traceback" not in done.stderr and not report.exists()
                fine = fine and ("error: " in done.stderr or "FATAL Flags" in done.stderr)
                verdict = "refused" if fine else f"CRASHED: {done.stderr[-1500:]}"
        good = good and fine
        print(f"{verdict}: {' '.join(arguments)}", flush=True)
    return good


def main():
    """Fuzzes both; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="random networks")
    parser.add_argument("--commands", type=int, default=10, help="random command lines")
    parser.add_argument("--seed", type=int, default=0, help="of the command lines")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz_networks(options.child)
        return
    good = networks(options.examples) if options.examples else True
    good = commands(options.commands, options.seed) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
