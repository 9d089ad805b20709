"""`--quantizer=tfmot`: the whole program on tf_keras, interrupted and not."""

import json
import os

import pytest

from tests.train.commands import TINY_MODELS, WITHOUT_PICTURES, run, run_until

# The variable is set before the tiny models are registered, which imports Keras.
QUICK = {
    "before": (TINY_MODELS, WITHOUT_PICTURES),
    "TF_USE_LEGACY_KERAS": "1",
    "forked": True,
}


@pytest.mark.slow(90)
def test_a_run_and_a_killed_one_end_equal(tmp_path):
    flags = ["--model=tiny_ac", "--weight_bits=4", "--weight_levels=odd", "--wide_tap"]
    flags += ["--activation_bits=6", "--quantizer=tfmot", "--epochs=1", "--qat_epochs=3"]
    flags += ["--batch_size=256", "--verbose=0"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*flags, f"--workdir={whole}", **QUICK)
    run_until(killed / "state_qat.npz", *flags, f"--workdir={killed}", **QUICK)
    assert not os.path.exists(killed / "quantized.keras")
    run(*flags, f"--workdir={killed}", **QUICK)
    results = [
        json.loads((folder / "measurement.json").read_text()) for folder in (whole, killed)
    ]
    for result in results:
        parity = result["parity"]
        assert parity["equal_outputs"] == 1.0
        assert all(layer["different"] == 0 for layer in parity["layers"]), parity["text"]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert (whole / "model.tflite").read_bytes() == (killed / "model.tflite").read_bytes()


@pytest.mark.slow(10)
def test_a_network_that_tfmot_cannot_quantize_is_refused_before_it_is_trained(tmp_path):
    flags = ["--model=tiny_sigmoid", "--quantizer=tfmot"]
    _, error = run(*flags, f"--workdir={tmp_path / 'run'}", **QUICK, code=1)
    assert (
        "'probabilities' (Sigmoid): TFMOT has no wrapper" in error and "Traceback" not in error
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_keras_3_chosen_before_says_what_to_set(tmp_path):
    _, error = run("--quantizer=tfmot", f"--workdir={tmp_path}", before=(TINY_MODELS,), code=1)
    assert "TF_USE_LEGACY_KERAS=1" in error and "before the first import" in error


def test_mixed_precision_is_refused(tmp_path):
    flags = ["--quantizer=tfmot", "--mixed_precision=bfloat16", f"--workdir={tmp_path}"]
    _, error = run(*flags, code=1)
    assert "--mixed_precision=bfloat16" in error
