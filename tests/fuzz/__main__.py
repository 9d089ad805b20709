"""Random networks and random command lines: each works exactly, or refuses by name.

    python -m tests.fuzz --examples=200 --commands=20 --verbose
    python -m tests.fuzz --commands=0 --runtimes=reference,tflm
    REPQ_ARM=~/arm python -m tests.fuzz --commands=0 --runtimes=xnnpack_arm

Networks run in a process of their own, so that a crash of the interpreter is seen and named.
In other runtimes than XNNPACK on x86 a file computes what `with_runtime` says; ARM is emulated
(`tests/runtimes/test_arm.py`) and runs all files at the end. `--verbose` counts the layers that
were drawn. Command lines are random flags of `train/main.py`: exit status 0 with parity in the
report, or 1 with one line of `error:`.
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

# Values that a run takes, each with every other of its task but for a few named refusals.
COMMON = {
    "method": ["repq", "repq", "merged", "plain"],
    "bits": ["8", "6", "4", "2"],
    "weight_bits": ["8", "3"],
    "activation_bits": ["8", "5", "16"],
    "container": ["int8", "int4"],
    "input_type": ["int8", "uint8", "float32"],
    "batch_size": ["16", "97"],
    "calibration_images": ["16", "100000"],
    "learning_rate": ["0.01", "0.0001"],
    "qat_learning_rate": ["0.001"],
    "weight_decay": ["0", "0.001"],
    "mixed_precision": ["none", "bfloat16"],
    "deterministic": ["true", "false"],
    "verbose": ["1", "2"],
    "seed": ["7"],
}
TASKS = {
    "classification": {
        **COMMON,
        "model": ["ac_resnet18", "repvgg_a0", "qarepvgg_a0", "orepa_resnet18", "mobileone_s1"],
        "bn_statistics": ["restored", "batch", "estimate", "sample", "running"],
        "image_size": ["8", "16", "32"],
        "augment": ["none", "crop", "crop_flip", "resized_crop"],
        "randaugment": ["2"],
        "mixup": ["0.2"],
        "label_smoothing": ["0.1"],
    },
    "super_resolution": {
        **COMMON,
        "model": ["ecbsr_m4c8", "repvgg_sr_m4c16"],
        "scale": ["2", "3"],
        "color": ["y", "rgb"],
        "patch_size": ["8", "16"],
    },
}
SHORT = {
    "classification": {"width": "0.125", "epochs": "0.05", "qat_epochs": "0.05"},
    "super_resolution": {"epochs": "0.05", "qat_epochs": "0.05", "crops_per_image": "128"},
}
# Values that no run takes.
REFUSED = {
    "model": ["resnet19"],
    "method": ["best"],
    "bits": ["1", "9", "eight"],
    "activation_bits": ["12"],
    "batch_size": ["0", "-1"],
    "epochs": ["-1", "nan"],
    "qat_epochs": ["-0.5", "inf"],
    "learning_rate": ["-0.1", "nan"],
    "mixed_precision": ["float64"],
    "calibration_images": ["0"],
    "init_from": ["/no/such/file", "/etc/hostname"],
    "dataset": ["folder:/no/such", "no_such_set"],
    "strategy": ["sharded"],
}


def fuzz_networks(first, count, seed, runtimes):
    """Runs in the child: prints what it is about to do, then how it ended."""
    from tests.fuzz.check import SETTINGS, OnArm, check, describe, kinds
    from tests.fuzz.draws import drawing
    from tests.fuzz.models import network

    def tell(**entry):
        print(json.dumps(entry), flush=True)

    folder = tempfile.TemporaryDirectory()
    phone = OnArm(folder.name) if runtimes == ["xnnpack_arm"] else None
    for number in range(first, count):
        draw = drawing(random.Random(f"{seed}/{number}"))
        model, options = network(draw), draw(SETTINGS)
        case = f"{number}: {describe(model, options)}"
        tell(case=case, kinds=kinds(model))
        try:
            verdict = phone.add(model, options) if phone else check(model, options, runtimes)
        except Exception as error:  # the next networks are of interest, too
            verdict = f"wrong: {type(error).__name__}: {error}"
        if verdict != "waiting":
            tell(verdict=verdict)
    for case, verdict in phone.verdicts() if phone else ():
        tell(verdict=verdict, of=case)
    folder.cleanup()


def networks(first, count, seed, runtimes="xnnpack", verbose=False):
    """Counts the verdicts of networks from one on, and kinds of layers if `verbose`.

    Returns:
        Whether none was wrong.
    """
    drawn, case = 0, None
    verdicts, histogram = collections.Counter(), collections.Counter()
    while drawn < count:  # a child that crashes leaves some
        status, before = 0, drawn
        for entry in _child(first + drawn, first + count, seed, runtimes):
            status, case = entry.get("status", status), entry.get("case", case)
            drawn += "case" in entry
            histogram.update(entry.get("kinds", ()))
            if "verdict" in entry:
                kind, _, message = entry["verdict"].partition(": ")
                verdicts[kind] += 1
                if kind != "exact":
                    where = f" at {entry.get('of', case)}" if kind == "wrong" else ""
                    print(f"{kind}: {message}{where}", flush=True)
        if status:
            print(f"wrong: exit status {status} at {case}", flush=True)
        if drawn == before:
            return False
    if verbose:
        print("\n".join(f"{count:6} {kind}" for kind, count in histogram.most_common()))
    wrong = drawn - verdicts["exact"] - verdicts["refused"]
    print(
        f"{drawn} drawn, {verdicts['exact']} exact, {verdicts['refused']} refused by name, "
        f"{wrong} wrong"
    )
    return not wrong


def _child(first, count, seed, runtimes):
    """What a process prints of the networks from one on, and its exit status."""
    options = [f"--child={count}", f"--first={first}", f"--seed={seed}"]
    options.append(f"--runtimes={runtimes}")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz", *options], stdout=subprocess.PIPE, text=True
    )
    yield from (json.loads(line) for line in child.stdout if line.startswith("{"))
    yield {"status": child.wait()}


def draw_command(rng):
    """Returns the flags of a run, and whether one of them must be refused."""
    task = rng.choice(sorted(TASKS))
    choices = TASKS[task]
    names = rng.sample(sorted(choices), rng.randint(1, 5))
    flags = {name: rng.choice(choices[name]) for name in names}
    bad = rng.random() < 0.25
    if bad:
        name = rng.choice(sorted(REFUSED))
        flags[name] = rng.choice(REFUSED[name])
    return {"task": task, "verbose": "0", **SHORT[task], **flags}, bad


def commands(count, seed):
    """Runs random command lines; returns whether each did what it must."""
    rng, good, verdicts = random.Random(seed), True, collections.Counter()
    for _ in range(count):
        flags, bad = draw_command(rng)
        arguments = [f"--{name}={value}" for name, value in flags.items()]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, str(MAIN), *arguments, f"--workdir={folder}/run"],
                capture_output=True,
                text=True,
            )
            report = Path(folder) / "run" / "report.json"
            if done.returncode == 0:
                parity = json.loads(report.read_text(encoding="utf-8"))["parity"]
                fine = parity["largest_difference"] == 0 and not bad
                verdict, more = ("exact", "") if fine else ("WRONG", str(parity))
            else:
                messages = [
                    line for line in done.stderr.splitlines() if line.startswith("error: ")
                ]
                fine = messages and "Traceback" not in done.stderr and not report.exists()
                verdict, more = ("refused", messages[-1]) if fine else ("CRASHED", done.stderr)
        good = good and fine
        verdicts[verdict] += 1
        print(f"{verdict}: {' '.join(arguments)} {more[-1500:]}", flush=True)
    print(f"command lines: {dict(verdicts)}")
    return good


def main():
    """Fuzzes both; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="random networks")
    parser.add_argument("--commands", type=int, default=10, help="random command lines")
    parser.add_argument("--seed", type=int, default=0, help="of both")
    parser.add_argument(
        "--runtimes", default="xnnpack", help="of networks, with commas; xnnpack_arm alone"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="count the layers that were drawn"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    options = parser.parse_args()
    if options.child:
        runtimes = options.runtimes.split(",")
        fuzz_networks(options.first, options.child, options.seed, runtimes)
        return
    counts = options.first, options.examples, options.seed, options.runtimes
    good = networks(*counts, options.verbose) if options.examples else True
    good = commands(options.commands, options.seed) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
