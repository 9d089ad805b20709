"""What lies beside a `.tflite` file: a C header for microcontrollers, JSON for programs."""

import hashlib
import json
import shutil
import subprocess

import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import repq_tf
from repq_tf.tflite.operators import OPERATORS
from tests.deployment.files import read, write
from tests.quantization.networks import network, quantize, residual

PRINT = """
#include <stdio.h>
#include "model.h"
#include "model.h"
int main(void) {
  if ((unsigned long)(size_t)digits % 16) return 1;
  return fwrite(digits, 1, digits_len, stdout) != sizeof digits;
}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.tflite"
    repq_tf.export_tflite(quantize(network(residual)), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("language", ["c -std=c11", "c++ -std=c++17"])
def test_the_header_compiles_to_the_bytes_of_the_file(file, tmp_path, language):
    compiler = {"c": "gcc", "c++": "g++"}[language.split()[0]]
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    operators = repq_tf.export_c_array(file, tmp_path / "model.h", name="digits")
    assert operators == {"CONV_2D": 3, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1}
    (tmp_path / "main.c").write_text(PRINT)
    command = [compiler, "-x", *language.split(), "-Wall", "-Wextra", "-Werror", "main.c"]
    subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True)
    printed = subprocess.run([tmp_path / "main"], stdout=subprocess.PIPE, check=True).stdout
    assert printed == file.read_bytes()


def test_the_header_says_what_the_program_needs(file, tmp_path):
    repq_tf.export_c_array(file, tmp_path / "model.h")
    head = (tmp_path / "model.h").read_text().partition("#ifndef")[0]
    assert hashlib.sha256(file.read_bytes()).hexdigest() in head
    assert "resolver.AddConv2D();" in head and "MicroMutableOpResolver<4>" in head
    assert "input: image, int8 [None, 10, 10, 3], scale " in head
    assert "output: logits, int8 [None, 5], scale " in head
    assert [p.name for p in tmp_path.iterdir()] == ["model.h"]


def test_every_listed_operator_is_one_of_the_schema():
    known = {n for n in vars(schema.BuiltinOperator) if n[0] != "_"}
    options = {n for n in vars(schema.BuiltinOptions) if n[0] != "_"}
    assert set(OPERATORS) <= known
    assert {entry.options for entry in OPERATORS.values()} - {None} <= options
    for kind, entry in OPERATORS.items():
        if entry.micro is not None:
            assert entry.micro.upper() == kind.replace("_", "")


def test_operators_that_the_micro_runtime_lacks_are_named(file, tmp_path):
    model = read(file)
    (code,) = (c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.ADD)
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.ATAN2, 127
    write(model, tmp_path / "odd.tflite")
    with pytest.raises(ValueError, match=r"odd\.tflite: TensorFlow Lite Micro has no .*ATAN2"):
        repq_tf.export_c_array(tmp_path / "odd.tflite", tmp_path / "model.h")
    assert [p.name for p in tmp_path.iterdir()] == ["odd.tflite"]


def test_inputs_of_any_size_are_refused_and_batches_are_not(file, tmp_path):
    model = read(file)
    (image,) = model.subgraphs[0].inputs
    assert list(model.subgraphs[0].tensors[image].shapeSignature) == [-1, 10, 10, 3]
    model.subgraphs[0].tensors[image].shapeSignature = [-1, 10, -1, 3]
    write(model, tmp_path / "any.tflite")
    with pytest.raises(
        ValueError, match=r"any\.tflite takes inputs of any size, .*input_shape="
    ):
        repq_tf.export_c_array(tmp_path / "any.tflite", tmp_path / "model.h")
    assert [p.name for p in tmp_path.iterdir()] == ["any.tflite"]


@pytest.mark.parametrize("name", ["", "2x", "a-b", "a b", None, "int", "class"])
def test_bad_names(file, tmp_path, name):
    with pytest.raises(ValueError, match="name must be a C identifier, .*Received"):
        repq_tf.export_c_array(file, tmp_path / "model.h", name=name)


@pytest.mark.parametrize("export", [repq_tf.export_c_array, repq_tf.export_metadata])
@pytest.mark.parametrize("damage", [b"", b"no flatbuffer at all", "cut"])
def test_files_that_are_none(file, tmp_path, export, damage):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(file.read_bytes()[:400] if damage == "cut" else damage)
    with pytest.raises(ValueError, match=r"bad\.tflite is not a whole TFLite file"):
        export(bad, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tflite"]


def test_metadata_says_how_to_use_the_file(file, tmp_path):
    labels = list("abcde")
    path = tmp_path / "about.json"
    given = repq_tf.export_metadata(
        file, path, labels=labels, pixels=((1, 2, 3), 4.5), meaning="logits"
    )
    found = json.loads(path.read_text())
    assert found == given
    content = file.read_bytes()
    assert found["file"] == "model.tflite" and found["bytes"] == len(content)
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["labels"] == labels and found["meaning"] == "logits"
    (entry,), (end,) = found["inputs"], found["outputs"]
    assert (entry["name"], entry["type"], entry["zero_point"]) == ("image", "int8", 0)
    assert entry["shape"] == [None, 10, 10, 3] and end["shape"] == [None, 5]
    (detail,) = Interpreter(str(file)).get_input_details()
    assert (entry["scale"], entry["zero_point"]) == detail["quantization"]
    assert found["normalization"]["applied"] == "by the caller"
    assert found["normalization"]["mean"] == [1, 2, 3] and found["normalization"]["std"] == 4.5
    assert found["operators"]["CONV_2D"] == 3 and found["repq_tf"]


def test_metadata_lies_beside_the_file(file):
    repq_tf.export_metadata(file)
    found = json.loads(file.with_suffix(".json").read_text())
    assert found["labels"] is found["normalization"] is found["meaning"] is None


def test_metadata_that_does_not_fit(file, tmp_path):
    with pytest.raises(ValueError, match="labels must name the 5 values .*Received: 2 labels"):
        repq_tf.export_metadata(file, tmp_path / "x", labels=["a", "b"])
    for pixels in (
        1,
        (1,),
        (1, 0),
        (1, float("nan")),
        ((1, 2), 1),
        ("a", 1),
        (1, -1),
        (1, 2, 3),
    ):
        with pytest.raises(ValueError, match=r"pixels must be \(mean, std\).*Received"):
            repq_tf.export_metadata(file, tmp_path / "x", pixels=pixels)
    assert not list(tmp_path.iterdir())
