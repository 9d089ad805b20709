"""Makes a finished run's networks part of the package: weights, `.tflite` file, card.

    python benchmarks/pretrained.py runs/resnet8

The run is one of `train/main.py --bits=8`, of classification. Its `.tflite` file is taken as it
is, with the accuracy that the run measured of it; the float weights are read again as users
read them, in float32, and judged on all test images. The card's table in `docs/model_cards.md`
is written anew.
"""

import json
import os
import textwrap
from dataclasses import fields
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app

from repq_tf.files import write_atomically
from repq_tf.models import pretrained
from repq_tf.train.run import run_folder
from repq_tf.train.run.products import sha256
from repq_tf.train.settings import Settings, resolve
from repq_tf.train.settings.flags import FLAGS as TRAINING
from repq_tf.train.tasks.classification.task import Classification

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "docs" / "model_cards.md"
MOST_BYTES = 500_000
# Names of classes, which not every copy of a data set has.
LABELS = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
}
# Where a run lies and where its data lie is nobody else's.
_OWN = ("workdir", "data_dir", "verbose")


def read_run(path):
    """Returns folder, settings and report of a run, if it is whole and of the right kind."""
    folder = run_folder.RunFolder(path)
    if not folder.has(run_folder.REPORT_DATA):
        raise SystemExit(f"The argument must be the folder of a finished run. Received: {path}")
    folder.check_products([run_folder.FLOAT, run_folder.FILE])
    report = json.loads(Path(folder.file(run_folder.REPORT_DATA)).read_text("utf-8"))
    settings = Settings(**{f.name: report["settings"][f.name] for f in fields(Settings)})
    plain = settings.width == 1 and settings.upgrade is None
    bits = {settings.weight_bits, settings.activation_bits}
    if settings.task != "classification" or not plain or bits != {8}:
        raise SystemExit(
            f"The run must be of a classifier of width 1 at 8 bits. Received: {path}"
        )
    return folder, settings, report


def command(settings):
    """Returns the command that repeats a run, without the flags that have their defaults."""
    first = {"model": settings.model, "bits": 8, "dataset": settings.dataset}
    plain = resolve(**first, data_dir=settings.data_dir)
    more = {
        name: here
        for name, here, _ in settings.differences(plain.as_dict())
        if name in TRAINING and name not in _OWN
    }
    whole = {k: f"{v:g}" if isinstance(v, float) else v for k, v in {**first, **more}.items()}
    words = (f"--{name}={value}" for name, value in whole.items())
    return " ".join(["python train/main.py", *words])


def make(path):
    """Writes the files of a run, and returns its card."""
    folder, settings, report = read_run(path)
    task = Classification(settings)
    name, weights = settings.model, settings.dataset
    files = {kind: pretrained.FOLDER / f"{name}-{weights}.{kind}" for kind in ("npz", "tflite")}
    pretrained.FOLDER.mkdir(exist_ok=True)
    pretrained.save_weights(folder.load_model(run_folder.FLOAT), files["npz"])
    write_atomically(files["tflite"], Path(folder.file(run_folder.FILE)).read_bytes())
    for file in files.values():
        if file.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{file} must have at most {MOST_BYTES} bytes.")
    model = task.build(name)
    pretrained.load_weights(model, files["npz"])
    accuracy = {
        "float": task.evaluate(model)["accuracy"],
        "file": report["metrics"]["file"]["accuracy"],
    }
    return {
        "model": name,
        "weights": weights,
        "data": task.images.name,
        "training_images": task.images.train_size,
        "test_images": task.images.test_size,
        "labels": LABELS.get(weights, list(task.labels)),
        "input_shape": list(task.images.image_shape),
        "pixels": list(task.pixels),
        "parameters": model.count_params(),
        "accuracy": accuracy,
        "bytes": {kind: file.stat().st_size for kind, file in files.items()},
        "command": command(settings),
        "versions": report["versions"],
        "sha256": {kind: sha256(file) for kind, file in files.items()},
    }


def table(card):
    """Returns the figures of a card, as they stand in the documentation."""
    size, accuracy = card["bytes"], card["accuracy"]
    lines = textwrap.wrap(card["command"], 88, break_on_hyphens=False)
    command = " \\\n    ".join(lines)
    return (
        f"| | accuracy, {card['test_images']:,} test images | bytes |\n"
        "|---|---|---|\n"
        f"| float32 weights | {100 * accuracy['float']:.2f} % | {size['npz']:,} |\n"
        f"| int8 file | {100 * accuracy['file']:.2f} % | {size['tflite']:,} |\n"
        "\n"
        f"```sh\n{command}\n```\n"
    )


def write_table(card, page):
    """Returns a page with the figures of a card in their place, between two comments."""
    begin, end = (f"<!-- {mark}{card['model']}-{card['weights']} -->\n" for mark in ("", "/"))
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{CARDS} has no place for the table: {begin}{end}")
    return f"{before}{begin}\n{table(card)}\n{end}{after}"


def main(arguments):
    """Makes the files of the run that is named, and prints its table."""
    if len(arguments) != 2:
        raise SystemExit("One argument is needed: the folder of a finished run.")
    card = make(arguments[1])
    target = pretrained.FOLDER / f"{card['model']}-{card['weights']}.json"
    write_atomically(target, (json.dumps(card, indent=2) + "\n").encode())
    write_atomically(CARDS, write_table(card, CARDS.read_text("utf-8")).encode())
    print(table(card))


if __name__ == "__main__":
    app.run(main)
