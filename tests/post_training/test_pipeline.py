"""`post_training_quantize` as a whole: what it gains, what it keeps, what it refuses."""

import numpy as np
import pytest

import repq_tf
from repq_tf.layers import ConvBlock
from repq_tf.post_training.ladder import Settings, rungs_from
from repq_tf.post_training.rounding import ROUNDINGS
from tests.deployment.files import assert_exact, parity
from tests.post_training.networks import unbalance
from tests.post_training.rounding.test_rounding import SHAPE, every_kind, smooth_images
from tests.quantization.networks import (
    array,
    block_of,
    equal,
    layers,
    network,
    quantize,
    residual,
    values,
)

# Of only 64 images, a few decide about the noise.
X, UNSEEN = smooth_images(64, 0), smooth_images(1024, 1)


def ptq(model, **options):
    options = {"calibration_data": X, "verbose": False, "iterations": 100, **options}
    return repq_tf.post_training_quantize(model, **options)


def noise(model, quantized, x=UNSEEN):
    """The noise at the outputs as a part of the signal, means apart."""
    y, found = (np.asarray(array(m(x, training=False)), np.float64) for m in (model, quantized))
    return np.square(found - y).sum() / np.square(y - y.mean(axis=0)).sum()


@pytest.fixture(scope="module")
def blocks():
    return network(residual, SHAPE)


@pytest.mark.slow(25)
def test_fitted_levels_carry_over_to_images_that_were_not_seen(blocks, tmp_path):
    """Of a network of blocks, merged first; and the files compute what the models do."""
    before = values(blocks)
    options = {"weight_bits": 3, "activation_range": "min_error"}
    found = {name: ptq(blocks, rounding=name, **options) for name in ROUNDINGS}
    assert equal(values(blocks), before)
    noises = {name: noise(blocks, quantized) for name, quantized in found.items()}
    assert noises["adaround"] < 0.8 * noises["nearest"]
    assert max(noises["descent"], noises["adaquant"]) < 0.6 * noises["nearest"]
    for name, quantized in found.items():
        assert quantized.name == "net_quantized"
        assert isinstance(block_of(quantized, "vgg"), ConvBlock)
        if name in ("descent", "adaquant"):
            assert_exact(parity(quantized, tmp_path / f"{name}.tflite", UNSEEN[:8])[1])
    again = ptq(blocks, rounding="adaquant", **options)
    assert equal(values(again), values(found["adaquant"]))


@pytest.mark.slow(4)
def test_the_nearest_levels_are_those_of_quantize():
    """With its ranges, corrections, rules and fixed steps, of a network that is merged."""
    model = network(every_kind, SHAPE)
    options = {
        "activation_bits": 6,
        "rules": {"grouped": {"weight_bits": 5}},
        "weight_range": "mae",
        "activation_range": "percentile",
        "correct": "bias",
        "input_step": 1 / 32,
    }
    one, other = ptq(model, **options), quantize(model, calibration_data=X, **options)
    assert [w.path for w in one.weights] == [w.path for w in other.weights]
    assert equal(values(one), values(other))


def chain(x):
    x = layers.Conv2D(8, 3, activation="relu", name="a")(x)
    x = layers.Conv2D(8, 3, activation="relu", name="b")(x)
    return layers.Dense(4, name="c")(layers.GlobalAveragePooling2D(name="mean")(x))


@pytest.mark.slow(8)
def test_grids_of_whole_tensors_ask_for_equalization():
    model = unbalance(network(chain, SHAPE), spread=1.0, dead=0)
    options = {"per_channel": False, "weight_bits": 4}
    noises = {
        given: noise(model, ptq(model, equalize=given, **options))
        for given in (None, True, False)
    }
    assert noises[None] == noises[True] < 0.5 * noises[False]
    rules = {"b": {"per_channel": False}}
    by_rule, without = (
        values(ptq(model, rules=rules, equalize=given)) for given in (None, False)
    )
    assert not equal(by_rule, without)


def test_a_network_that_cannot_be_equalized_is_quantized_as_it_is(capsys):
    model = network(lambda x: layers.Conv2D(4, 1, name="only")(x), SHAPE)
    quantized = ptq(model, per_channel=False, verbose=True)
    assert (
        "not equalized: model 'net_merged': no channel can be scaled" in capsys.readouterr().out
    )
    assert noise(model, quantized) < 0.01
    with pytest.raises(ValueError, match="no channel can be scaled"):
        ptq(model, equalize=True)


class Wanted:
    """A metric that tells what it was asked, and falls by the noise."""

    def __init__(self, model):
        self.model, self.asked = model, []

    def __call__(self, candidate):
        self.asked.append(candidate)
        return 90 - 100 * noise(self.model, candidate)


@pytest.mark.slow(15)
def test_the_ladder_stops_at_the_first_rung_that_holds(capsys):
    model = network(chain, SHAPE)
    metric = Wanted(model)
    first = 100 * noise(model, ptq(model, weight_bits=2))
    quantized = ptq(
        model, weight_bits=2, max_drop=0.7 * first, metric=metric, verbose=True, iterations=20
    )
    ladder = quantized.ladder
    assert metric.asked[0] is model and metric.asked[-1] is quantized
    assert ladder.float_value == 90 and ladder.holds
    assert [rung.holds for rung in ladder.rungs[:-1]] == [False] * (len(ladder.rungs) - 1)
    assert len(ladder.rungs) > 1 and ladder.rungs[-1].drop <= 0.7 * first
    assert ladder.rungs[0].drop == pytest.approx(first)
    printed = capsys.readouterr().out
    assert str(ladder) in printed and f"{len(ladder.rungs)} holds" in printed


@pytest.mark.slow(15)
def test_where_no_rung_holds_the_best_one_is_returned():
    model = network(chain, SHAPE)
    options = {"weight_bits": 2, "rounding": "descent", "iterations": 5}
    metric = Wanted(model)
    with pytest.warns(UserWarning, match="max_drop: no settings hold 0; the smallest drop is"):
        quantized = ptq(model, max_drop=0, metric=metric, **options)
    ladder = quantized.ladder
    drops = [rung.drop for rung in ladder.rungs]
    assert not ladder.holds and drops[ladder.best] == min(drops)
    assert quantized is metric.asked[1 + ladder.best]
    assert "none holds" in str(ladder)
    told = [(r.settings.rounding, r.settings.activation_bits) for r in ladder.rungs]
    assert told == [("descent", 8), ("descent", 8), ("descent", 16)]


def test_rungs_change_something_and_never_go_back():
    names = tuple(ROUNDINGS)
    first = Settings("min_error", "min_error", "nearest", 8)
    rungs = list(rungs_from(first, names))
    assert rungs[0] == first and len(set(rungs)) == len(rungs) == 4
    assert rungs[-1] == Settings("output_error", "output_error", "descent", 16)
    first = Settings("output_error", "output_error", "adaquant", 16)
    assert list(rungs_from(first, names)) == [first]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounding": "up"}, "rounding must be one of .*'descent', 'adaround', 'adaquant'"),
        ({"rounding": None}, "rounding must be one of"),
        ({"rounding": "descent", "calibration_data": X[:31]}, "at least 32 images.*: 31"),
        ({"max_drop": 1, "metric": len, "calibration_data": X[:8]}, "at least 32.*max_drop=1"),
        ({"metric": len}, "max_drop and metric must be given together"),
        ({"max_drop": 1.0}, "max_drop and metric must be given together"),
        ({"max_drop": -1.0, "metric": len}, "max_drop must be a number at least 0"),
        ({"max_drop": 1.0, "metric": "accuracy"}, "metric must be a function"),
        ({"iterations": 0}, "iterations must be"),
        ({"equalize": "yes"}, "equalize must be True, False or None"),
        ({"correct": "mean"}, "correct must be one of"),
        ({"bits": 9}, "bits must be"),
        ({"calibration_data": None}, "calibration data must be"),
        ({"output_step": -1}, "output_step must be"),
    ],
)
def test_bad_arguments(options, message):
    model = network(lambda x: layers.Conv2D(4, 1, name="only")(x), SHAPE)
    before = values(model)
    with pytest.raises(ValueError, match=message):
        ptq(model, **options)
    assert equal(values(model), before)


def test_a_metric_must_return_a_number():
    model = network(chain, SHAPE)
    with pytest.raises(ValueError, match="what metric returns must be a finite number"):
        ptq(model, max_drop=1, metric=lambda model: float("nan"))


def test_quantized_models_are_refused():
    model = network(lambda x: layers.Conv2D(4, 1, name="only")(x), SHAPE)
    with pytest.raises(ValueError, match="is quantized already"):
        ptq(ptq(model))
