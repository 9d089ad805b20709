"""`repq_tf.sensitivity` and `repq_tf.allocate_bits` against NumPy and brute force."""

import itertools
import json

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.inspection import LayerCost, Sensitivity, SensitivityRow
from repq_tf.inspection.trade_off import Choice, allocate, hull
from repq_tf.quantizers import levels, min_error_step
from tests.quantization.networks import array, images, layers, network, quantize, residual

SHAPE = (6, 6, 3)
X = images(24, SHAPE)
BITS = (2, 4, 8)


def pixels(x):
    """Two 1x1 convolutions, which NumPy computes in a line each, and a sum of both."""
    x = layers.Conv2D(4, 1, activation="relu", name="a")(x)
    return layers.Add(name="add")([x, layers.Conv2D(4, 1, name="b")(x)])


@pytest.fixture(scope="module")
def model():
    return network(pixels, SHAPE)


@pytest.fixture(scope="module")
def table(model):
    return repq_tf.sensitivity(model, X, BITS, verbose=False)


def found(table):
    return {(row.name, row.kind, row.bits): row for row in table.rows}


def rounded(values, bits, signed, channels=False):
    """Values on the grid of least squared error."""
    low, high = levels(bits, signed, narrow=signed and bits == 8 and channels)
    step = min_error_step(values.astype("float32"), low, high, channels).astype(np.float64)
    return np.clip(np.rint(values / step), low, high) * step


def test_each_quantizer_alone(model, table):
    """With the means of a convolution's output corrected, as `quantize` does."""
    (ka, ba), (kb, bb) = (
        [array(v).astype(np.float64) for v in (layer.kernel[0, 0], layer.bias)]
        for layer in (model.get_layer("a"), model.get_layer("b"))
    )
    x = X.astype(np.float64)
    a = np.maximum(x @ ka + ba, 0)
    b = a @ kb + bb
    y = a + b

    def corrected(x, kernel, bits):
        noise = x @ (rounded(kernel, bits, True, channels=True) - kernel)
        return noise - noise.mean(axis=(0, 1, 2))

    def behind(a):
        return a + (a @ kb + bb)

    rows = found(table)
    assert [key[:2] for key in rows] == [
        (name, kind)
        for name, kind in (
            ("image", "features"),
            ("a", "weights"),
            ("a", "features"),
            ("b", "weights"),
            ("b", "features"),
            ("add", "features"),
        )
        for _ in BITS
    ]
    for bits in BITS:
        expected = {
            ("a", "weights"): behind(np.maximum(x @ ka + ba + corrected(x, ka, bits), 0)),
            ("a", "features"): behind(rounded(a, bits, False)),
            ("b", "weights"): y + corrected(a, kb, bits),
            ("b", "features"): a + rounded(b, bits, True),
            ("add", "features"): rounded(y, bits, True),
            ("image", "features"): behind(np.maximum(rounded(x, bits, True) @ ka + ba, 0)),
        }
        for key, other in expected.items():
            noise = ((other - y) ** 2).sum() / (y**2).sum()
            row = rows[(*key, bits)]
            assert row.noise == pytest.approx(noise, rel=0.02), (*key, bits)
            assert row.sqnr == pytest.approx(-10 * np.log10(noise), abs=0.1)


def test_a_function_judges_all_outputs(model, table):
    seen = []

    def largest(real, outputs):
        seen.append((real, outputs))
        return np.abs(real - outputs).max()

    other = repq_tf.sensitivity(model, X[:8], [4], largest, verbose=False)
    assert len(seen) == len(other.rows) == 6 and other.metric == "largest"
    for (real, outputs), row in zip(seen, other.rows, strict=True):
        assert real.shape == outputs.shape == (8, 6, 6, 4)
        np.testing.assert_allclose(real, array(model(X[:8])), atol=1e-5)
        assert row.noise == np.abs(real - outputs).max() > 0
    assert "largest" in str(other) and "dB" in str(table)


def test_costs_are_those_of_the_summary(model, table):
    other = network(residual)
    small = repq_tf.sensitivity(other, images(8), [8], verbose=False)
    eight = repq_tf.summary(quantize(other, bits=8)).totals
    assert sum(cost.size(8) for cost in small.costs.values()) == eight["size"]
    for activation_bits in (8, 5):
        qat = quantize(
            other, activation_bits=activation_bits, rules=[("*", {"weight_bits": 4})]
        )
        totals = repq_tf.summary(qat, container="int4").totals
        costs = small.costs.values()
        assert sum(cost.size(4) for cost in costs) == totals["size"]
        operations = sum(cost.bit_operations(4, activation_bits) for cost in costs)
        assert operations == totals["bit_operations"]
    assert table.costs["a"] == LayerCost(12, 4, 36 * 12, True)


def test_rules_give_these_bits(model, table):
    sizes = {b: sum(cost.size(b) for cost in table.costs.values()) for b in BITS}
    assert repq_tf.allocate_bits(table, size=sizes[8]) == [
        ("a", {"weight_bits": 8}),
        ("b", {"weight_bits": 8}),
    ]
    rules = repq_tf.allocate_bits(table, size=sizes[8] - 1)
    qat = quantize(model, rules=rules, calibration_data=X)
    bits = {row.name: row.weight_bits for row in repq_tf.summary(qat).layers}
    assert {bits["a"], bits["b"]} == {4, 8}
    assert [settings["weight_bits"] for _, settings in rules] == [bits["a"], bits["b"]]
    operations = 2 * 4 * 36 * (12 + 16) * 8
    assert dict(repq_tf.allocate_bits(table, bit_operations=operations / 2)) == {
        "a": {"weight_bits": 4},
        "b": {"weight_bits": 4},
    }


def test_names_are_no_patterns():
    rows = [SensitivityRow("x[1]", "weights", b, 1 / b) for b in BITS]
    table = Sensitivity("net", 1, "sqnr", tuple(rows), {"x[1]": LayerCost(8, 0, 8, True)})
    ((name, _),) = repq_tf.allocate_bits(table, size=4)
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Conv2D(2, 1, name="x[1]")])
    qat = quantize(model, rules=[(name, {"weight_bits": 4})], calibration_data=X[:, :4, :4])
    assert repq_tf.summary(qat).layers[1].weight_bits == 4


def brute(choices, budget):
    """The least noise within a budget."""
    every = itertools.product(*choices.values())
    fitting = [found for found in every if sum(c.cost for c in found) <= budget]
    return min(sum(c.noise for c in found) for found in fitting)


@pytest.mark.parametrize("seed", range(5))
def test_allocation_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    choices = {
        f"layer{k}": [
            Choice(b, b * int(rng.integers(1, 50)), float(rng.exponential(4.0**-b)))
            for b in (2, 4, 8)
        ]
        for k in range(4)
    }
    for allocation in allocate(choices):  # each is the best of its cost
        assert allocation.noise == pytest.approx(brute(choices, allocation.cost))
    least = sum(min(c.cost for c in found) for found in choices.values())
    most = sum(max(c.cost for c in found) for found in choices.values())
    for budget in np.linspace(least, most, 20):
        found = allocate(choices, budget)
        assert found[-1].cost <= budget
        step = max(a.noise - b.noise for a, b in itertools.pairwise(allocate(choices)))
        assert found[-1].noise <= brute(choices, budget) + step


def test_the_hull_leaves_out_what_never_pays():
    points = [(8, 16, 0.1), (2, 4, 8.0), (3, 6, 7.9), (4, 8, 1.0), (6, 12, 1.0)]
    assert [choice.bits for choice in hull(Choice(*point) for point in points)] == [2, 4, 8]


def test_the_table_as_data_and_picture(table, tmp_path):
    data = json.loads(json.dumps(table.as_dict()))
    assert data == table.as_dict() and Sensitivity.from_dict(data) == table
    assert repq_tf.allocate_bits(Sensitivity.from_dict(data), size=100)
    for name, start in (("bits.png", b"\x89PNG"), ("bits.svg", b"<?xml")):
        table.plot(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 2
    header, *lines = str(table).splitlines()[1:]
    assert header.split() == ["layer", "quantized", "2", "bits", "4", "bits", "8", "bits"]
    assert len(lines) == 6 and lines[1].split()[:2] == ["a", "weights"]


def test_arguments_are_checked_early(model, table, tmp_path):
    cases = [
        ({"bits": (4, 9)}, "bits must be a whole number from 2 to 8.*Received: 9"),
        ({"bits": ()}, "bits must be numbers from 2 to 8"),
        ({"metric": "kl"}, "metric must be 'sqnr' or a function. Received: 'kl'"),
        ({"data": X[:0]}, "data must not be empty"),
        ({"model": quantize(model, calibration_data=X)}, "is quantized already"),
        ({"bits": 4, "data": X[:4], "metric": lambda x, y: np.nan}, "finite number.*nan"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            repq_tf.sensitivity(**{"model": model, "data": X, "verbose": False, **options})
    least = sum(cost.size(2) for cost in table.costs.values())
    cases = [
        (table, {}, "size or bit_operations must be given"),
        (table, {"size": 1, "bit_operations": 1}, "size or bit_operations must be given"),
        (
            table,
            {"size": least - 1},
            f"size must be at least {least} bytes.*Received: {least - 1}",
        ),
        (table, {"bit_operations": 5}, "bit_operations must be at least 16,128 bit-operations"),
        (table, {"size": "1 MB"}, "size must be a number above 0"),
        (table, {"bit_operations": 1e9, "activation_bits": 12}, "activation_bits must be"),
        (
            table.as_dict(),
            {"size": 1e6},
            "table must be what repq_tf.sensitivity returns.*dict",
        ),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            repq_tf.allocate_bits(given, **options)
    with pytest.raises(ValueError, match="path must end in"):
        table.plot(tmp_path / "bits.txt")
