"""The table of flags, and command lines of it."""

import json
import subprocess
import sys

import pytest

from repq_tf.train.errors import UserError
from repq_tf.train.settings import Settings, command, resolve
from repq_tf.train.settings.flags import FLAGS
from repq_tf.train.settings.kinds import Choice, Integer, Number, Switch, Text
from tests.train.commands import ROOT, environment


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS.keys())
def test_every_line_is_whole(flag):
    assert len(flag.help) > 15 and flag.group
    assert flag.default is None or flag.kind.admits(flag.default)
    assert isinstance(flag.kind, Choice | Integer | Number | Switch | Text)
    if isinstance(flag.kind, Choice):
        assert all(word in flag.help for word in flag.kind.words)


def test_settings_are_the_flags_and_what_recipes_decide():
    names = set(resolve().as_dict())
    assert set(FLAGS) - names == {"bits"}
    extra = {"optimizer", "schedule", "decay", "warmup_epochs", "branch_gamma"}
    assert names - set(FLAGS) == extra
    assert set(Settings.__dataclass_fields__) == names
    with pytest.raises(TypeError, match="no flag called bitz"):
        resolve(bitz=4)


def test_help_shows_every_flag_in_its_group():
    text = command.describe("What it does.")
    groups = ["What", "Bits", "Data", "Training", "Devices", "Run folder"]
    places = [text.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)
    for name, flag in FLAGS.items():
        head = f"\n  --[no]{name}\n" if isinstance(flag.kind, Switch) else f"\n  --{name}\n"
        assert text.count(head) == 1
        assert groups.index(flag.group) == sum(p < text.index(head) for p in places) - 1
    assert max(map(len, text.splitlines())) <= 88


@pytest.mark.parametrize(
    "arguments, values",
    [
        (["--bits=4"], {"bits": 4}),
        (["--bits", "4"], {"bits": 4}),
        (["-bits=4"], {"bits": 4}),
        (["--bits=4", "--bits=5"], {"bits": 5}),
        (["--epochs=.5", "--seed", "7"], {"epochs": 0.5, "seed": 7}),
        (["--cache", "--nosync_bn"], {"cache": True, "sync_bn": False}),
        (["--cache=false", "--sync_bn=True"], {"cache": False, "sync_bn": True}),
        (["--dataset=folder:/with space/ü"], {"dataset": "folder:/with space/ü"}),
        ([], {}),
    ],
)
def test_what_is_read(arguments, values):
    assert command.read(arguments) == (values, [])


def test_a_file_of_flags_and_other_arguments(tmp_path):
    (tmp_path / "flags").write_text("--bits=4\n# more\n--method=plain\n")
    values, others = command.read([f"--flagfile={tmp_path / 'flags'}", "a", "--seed=3", "b"])
    assert values == {"bits": 4, "method": "plain", "seed": 3} and others == ["a", "b"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--bits=four"], "--bits must be an integer from 2 to 8. Received: 'four'"),
        (["--bits="], "--bits must be an integer from 2 to 8. Received: ''"),
        (["--bits=４"], "--bits must be an integer from 2 to 8. Received: '４'"),
        (["--bits=4.0"], "--bits must be an integer from 2 to 8. Received: '4.0'"),
        (["--bits"], "--bits must be an integer from 2 to 8. Received: nothing"),
        (["--epochs=1_0"], "--epochs must be a finite number greater than 0"),
        (["--epochs=inf"], "--epochs must be a finite number greater than 0"),
        (["--epochs=1e400"], "Received: inf"),
        (["--learning_rate=-nan"], "--learning_rate must be a finite number greater than 0"),
        (["--cache=maybe"], "--cache must be true or false. Received: 'maybe'"),
        (["--nocache=1"], "--nocache=1 does not take an argument"),
        (["--nobits"], "Unknown command line flag 'nobits'"),
        (["--colour=red"], "flag 'colour'. Did you mean color? --help lists all flags."),
        (["--workdir="], "--workdir must be a folder. Received: ''"),
        (["--workdir=a\nb"], r"--workdir must be a folder. Received: 'a\nb'"),
        (["--workdir=\udcff"], r"--workdir must be a folder. Received: '\udcff'"),
        (["--workdir", "--bits=4"], "--workdir must be a folder. Received: '--bits=4'"),
        (
            ["--method=Plain"],
            "one of: plain, merged, repq, ptq. Received: 'Plain'. Did you mean pla",
        ),
        (["--flagfile=/no/such"], "--flagfile must be a file that can be read"),
        (["--randaugment=1000"], "--randaugment must be an integer from 0 to 14"),
        (["--verbose=7"], "--verbose must be an integer from 0 to 2. Received: 7"),
        (["--step_gradient=fast"], "--step_gradient must be one of: bounded, lsq"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UserError) as error:
        command.read(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


# Command lines, and what their only line of error says.
EARLY = [
    (["--bits=1"], "--bits must be an integer from 2 to 8. Received: 1"),
    (["--model=resnet19"], "Received: 'resnet19'. Did you mean resnet18?"),
    (["--model=AC_ResNet18"], "Received: 'AC_ResNet18'. Did you mean ac_resnet18?"),
    (["--dataset=folder:"], "--dataset=folder:PATH must name a folder. Received: 'folder:'"),
    (["--dataset=folder:/no/such"], "must name an existing folder"),
    (["--dataset=Digits"], "Received: 'Digits'. Did you mean digits?"),
    (["--dataset=photographs"], "which is a data set for --task=super_resolution"),
    (["--dataset=div2k/bicubic_x2"], "which is a data set for --task=super_resolution"),
    (["--dataset=digits/small"], "'digits/small': digits has no configurations"),
    (["--model=ecbsr_m4c8", "--dataset=digits"], "a data set for --task=classification"),
    (["--model=ecbsr_m4c8", "--dataset=photograph"], "Did you mean photographs?"),
    (["--model=ecbsr_m4c8", "--test_sets=a:/no/such"], "--test_sets=NAME:PATH,... must name"),
    (["--data_dir=/no/such"], "--data_dir is where TFDS sets lie"),
    (["--dataset=cifar10", "--data_dir=/no/such"], "--data_dir must be an existing folder"),
    (["--init_from=/"], "--init_from=/ is a folder without float.keras"),
    (["--init_from=/etc/hostname"], "whose name ends in .keras. Received: /etc/hostname"),
    (["--upgrade=/etc/hostname"], "--upgrade must be a file whose name ends in .keras"),
    (["--distill=/"], "--distill=/ is a folder without float.keras"),
    (["--workdir=/proc/run"], "--workdir must be a folder that can be written"),
    (["--quantizer=tfmot", "--mixed_precision=bfloat16"], "--mixed_precision=bfloat16"),
    (["digits"], "All arguments are --flags (see --help). Received: 'digits'"),
]


def test_what_needs_no_data_is_refused_before_keras_is_imported(tmp_path):
    code = (
        "import contextlib, io, json, sys\n"
        "from repq_tf.train import main, upscale\n"
        "def run(program, arguments):\n"
        "    errors = io.StringIO()\n"
        "    with contextlib.redirect_stderr(errors):\n"
        "        try: program.main(arguments)\n"
        "        except SystemExit as stopped: return stopped.code, errors.getvalue()\n"
        "lines = [run(main, line) for line in json.loads(sys.argv[1])]\n"
        "lines.append(run(upscale, ['a.png', 'b.png']))\n"
        "lines.append(run(upscale, ['a.png', 'b.png', '--model=/no/such']))\n"
        "lines.append(run(upscale, ['a.png', '--model=/no/such']))\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
        "print(json.dumps(lines))\n"
    )
    lines = [[*line, f"--workdir={tmp_path / 'run'}"] for line, _ in EARLY[:-3]]
    lines += [line for line, _ in EARLY[-3:]]
    expected = [message for _, message in EARLY] + [
        "--model must be a .tflite file, or the folder of a run. Received: none",
        "--model must be a .tflite file or the folder of a run that has written",
        "Two names are needed",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for (status, error), message in zip(found, expected, strict=True):
        assert status == 1 and message in error, error
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
