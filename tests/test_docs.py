"""The README and the pages of `docs/`: their code is run, their links lead somewhere."""

import contextlib
import inspect
import io
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from sklearn import datasets

import repq_tf

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(PAGES[page]) if kind == language]


PYTHON = sorted(page for page in PAGES if blocks(page, "python"))

# Languages that nothing here runs, which the pages say.
ELSEWHERE_ONLY = {"cpp": "C++", "kotlin": "Kotlin", "swift": "Swift"}
# Python that is not run here, and why.
ELSEWHERE = {"docs/tfmot.md": "on tf_keras, by tests/tfmot/test_own_process.py"}
NOT_RUN = {
    'load_torch_checkpoint(repq_tf.models.repvgg_a0(), "RepVGG-A0-train.pth")': "a download",
}
# Python that is run in another form: without a download.
REPLACED = {'weights="imagenet"': "weights=None"}
# Pages whose Python stands alone; that of the others goes on from the README's example.
ALONE = {
    "README.md",
    "docs/limits.md",
    "docs/model_cards.md",
    "docs/own_block.md",
    "docs/tutorial.md",
    *ELSEWHERE,
}
# Commands are not run, only their flags are looked up; by how they begin, and why.
COMMANDS = {
    "export": "for the command behind it",
    "mkdocs": "CI builds the site",
    "pip install": "a download",
    "pre-commit": "changes the repository",
    "pytest": "this suite",
    "python -m repq_tf": "tests of the package and of parity run it",
    "python -m tests.test_examples": "writes the notebooks, which its tests run",
    "python -m tests.fuzz": "hours; tests/fuzz/test_fuzz.py runs a few",
    "python -m tests.train.kill_trials": "minutes; the tests of runs kill one",
    "python -m venv": "a fresh environment",
    "python benchmarks/": "minutes to days",
    "python docs/charts.py": "below",
    "python docs/drawings.py": "below",
    "python train/main.py": "minutes; tests/train/ runs it with small networks",
    "python train/upscale.py": "a trained network; its own tests train a small one",
    "repq-train": "as train/main.py",
    "source": "a fresh environment",
}


def skipped(code):
    return any(line in code for line in NOT_RUN)


def test_every_block_has_a_language_and_is_run():
    for page, text in PAGES.items():
        fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
        assert set(fences) <= {"", "python", "sh", *ELSEWHERE_ONLY}, page
        assert len(BLOCK.findall(text)) * 2 == len(fences), f"{page}: no language, or indented"
        for language in ("python", "sh"):
            assert len(blocks(page, language)) == fences.count(language), page
        for language in {*ELSEWHERE_ONLY}.intersection(fences):
            name = re.escape(ELSEWHERE_ONLY[language])
            named = rf"(?i)in {name}.*?\*\*This was not run here:\*\*\n\n```{language}\n"
            assert re.search(named, text, re.DOTALL), page
    left = [code for page in PYTHON for code in blocks(page, "python") if skipped(code)]
    assert len(left) == len(NOT_RUN)


def commands():
    """Pages and their commands: those of shell blocks, and Python's in the text."""
    for page, text in PAGES.items():
        for code in blocks(page, "sh"):
            for line in code.replace("\\\n", " ").splitlines():
                yield from ((page, part.strip()) for part in line.split("&&"))
        prose = BLOCK.sub("", text)
        spans = re.findall(r"`((?:\w+=\w+ )?python [^`]+)`", prose)
        yield from ((page, span) for span in spans)


def program(words):
    """The source in which a program's flags are, and what follows its name."""
    if words[0] == "-m":
        path = ROOT / words[1].replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        return path.read_text("utf-8"), words[2:]
    path = ROOT / words[0]
    files = [path, *path.parent.glob("training_runs.py")]
    if path == ROOT / "train" / "main.py":
        files = [path, *path.parent.glob("settings/*.py")]
    return "".join(file.read_text("utf-8") for file in files), words[1:]


@pytest.mark.parametrize(("page", "command"), list(commands()))
def test_commands_are_known_and_so_are_their_flags(page, command):
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    assert any(" ".join(words).startswith(begin) for begin in COMMANDS), command
    if words[0] == "repq-train":
        words = ["python", "train/main.py", *words[1:]]
    if words[0] != "python" or words[1:3] == ["-m", "venv"]:
        return
    source, words = program(words[1:])
    if "--" in words:  # a benchmark hands the flags behind it on to the training program
        behind = words.index("--")
        check_flags(program(["train/main.py"])[0], words[behind:])
        words = words[:behind]
    check_flags(source, words)


def check_flags(source, words):
    for word in words:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name not in ("", "help"):
            assert re.search(rf'"(--)?{name}"', source), word


def test_extras_exist():
    extras = set(re.findall(r"\[(\w+)\]\"", "".join(PAGES.values())))
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert extras and all(f'        "{extra}": [' in setup for extra in extras)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_in_the_text_exist(page):
    """`layers/rescale.py` may stand for `repq_tf/layers/rescale.py`."""
    prose = BLOCK.sub("", PAGES[page])
    for path, name in re.findall(r"`([\w/]+/\w+\.(?:py|json|md))(?:: (\w+))?", prose):
        if "NAME" in path:  # of a file that the reader makes
            continue
        found = [root / path for root in (ROOT, ROOT / "repq_tf") if (root / path).is_file()]
        assert found, path
        assert name in found[0].read_text("utf-8"), f"{path}: {name}"


def test_the_index_lists_every_page():
    listed = set(re.findall(r"^\| \[\w+\]\((\w+\.md)\)", PAGES["docs/README.md"], re.MULTILINE))
    assert listed == {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}


def test_the_readme_is_one_screen():
    assert len(PAGES["README.md"].splitlines()) <= 100


def test_the_drawings_are_those_of_the_script():
    drawn = {}
    for script in ("drawings.py", "charts.py"):
        drawn |= runpy.run_path(str(ROOT / "docs" / script))["pictures"]()
    kept = {path.name: path.read_text("utf-8") for path in ROOT.glob("docs/images/*.svg")}
    assert drawn == kept


def public_names():
    """What the API reference has to list, by full name."""
    rooms = {"layers": repq_tf.layers.__all__, "optimizers": repq_tf.optimizers.__all__}
    rooms["callbacks"] = [
        name
        for name, value in vars(repq_tf.callbacks).items()
        if inspect.isclass(value) and value.__module__ == "repq_tf.callbacks"
    ]
    for room in ("branches", "quantizers"):  # their checks of arguments are for ourselves
        module = getattr(repq_tf, room)
        rooms[room] = [n for n in module.__all__ if inspect.isclass(getattr(module, n))]
    yield from (f"repq_tf.{name}" for name in repq_tf.__all__ if name != "__version__")
    for room, names in rooms.items():
        yield from (f"repq_tf.{room}.{name}" for name in names)


def test_the_reference_lists_every_public_name():
    pages = "".join(path.read_text("utf-8") for path in ROOT.glob("docs/api/*.md"))
    listed = re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)
    assert len(listed) == len(set(listed))
    for name in public_names():
        if not inspect.ismodule(getattr(repq_tf, name.split(".")[1])) or name.count(".") > 1:
            assert name in listed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run in, with few images and steps that are not compiled."""
    compile_model = keras.Model.compile

    def compile_eagerly(*args, **options):
        compile_model(*args, run_eagerly=True, **options)

    digits = datasets.load_digits()
    few = SimpleNamespace(images=digits.images[:64], target=digits.target[:64])
    monkeypatch.setattr(keras.Model, "compile", compile_eagerly)
    monkeypatch.setattr(datasets, "load_digits", lambda: few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page, names):
    """Runs the Python of a page, and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks(page, "python"):
            if not skipped(code):
                for written, instead in REPLACED.items():
                    code = code.replace(written, instead)
                exec(compile(code, page, "exec"), names)
    return printed.getvalue()


@pytest.mark.slow(10)
def test_the_example_of_the_readme(folder):
    printed = run("README.md", {})
    assert (folder / "digits.tflite").stat().st_size > 100_000
    assert "first divergent layer: none" in printed


@pytest.fixture
def names(folder):
    """What the README's example leaves, of a network of two blocks."""
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            repq_tf.layers.ACBlock(4, activation="relu", name="stem"),
            repq_tf.layers.ACBlock(4, activation="relu", name="stage4_block1"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    qat = repq_tf.quantize(model, bits=8, calibration_data=images)
    repq_tf.export_tflite(qat, "digits.tflite")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for network in (model, qat):
        network.compile("sgd", loss, metrics=["accuracy"])
    return {
        "keras": keras,
        "np": np,
        "repq_tf": repq_tf,
        "images": images,
        "labels": np.arange(32) % 10,
        "loss": loss,
        "model": model,
        "qat": qat,
        "merged": repq_tf.merge(model),
    }


@pytest.mark.parametrize("page", PYTHON)
def test_a_page_says_where_its_python_goes_on_from(page):
    assert (page in ALONE) != ("../README.md#in-python" in PAGES[page])


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({*PYTHON} - {"README.md", *ELSEWHERE}))
def test_the_python_of_a_page(page, names):
    printed = run(page, {} if page in ALONE else names)
    assert "first divergent layer" not in printed or "first divergent layer: none" in printed
