"""RepOpt's optimizer: equal to the constant-scale block, and a Keras optimizer like any."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from repq_tf.branches import NumpyReading
from repq_tf.layers import ConvBNBlock, CSLABlock
from repq_tf.optimizers import RepOptimizer, repopt
from tests import forks

array = keras.ops.convert_to_numpy
SGD, Adam, AdamW = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW


# Equivalence: a network of constant-scale blocks and a plain one.

NETWORKS = {
    "with identity": [{"filters": 4}, {"filters": 4}],
    "without identity": [{"filters": 6}, {"filters": 8}],
    "stride 2": [{"filters": 4, "strides": 2}, {"filters": 4}],
    "groups": [{"filters": 4, "groups": 2}, {"filters": 8, "groups": 4}],
    "even kernel": [{"filters": 4, "kernel_size": (4, 2)}, {"filters": 4, "kernel_size": 2}],
}


def network(block, specification, **options):
    layers = [keras.Input((6, 6, 4))]
    for number, arguments in enumerate(specification):
        name = f"block{number}"
        layers.append(block(**arguments, activation="relu", name=name, **options))
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, name="logits")]
    return keras.Sequential(layers)


def blocks(model):
    return [layer for layer in model.layers if isinstance(layer, CSLABlock | ConvBNBlock)]


def kernels(model):
    return [block.inner.merge(NumpyReading()).kernel for block in blocks(model)]


def pair(specification, power=2):
    """A constant-scale network, the plain one of the same function, and its multipliers."""
    branched = network(CSLABlock, specification)
    plain = network(ConvBNBlock, specification)
    rng = np.random.default_rng(0)
    multipliers = {}
    for block, other, kernel in zip(
        blocks(branched), blocks(plain), kernels(branched), strict=True
    ):
        for scaled in block.inner.children:
            scaled.gain.assign(rng.uniform(0.3, 1.8, block.filters) * rng.choice([-1, 1]))
        kernel = block.inner.merge(NumpyReading()).kernel
        other.inner.kernel.assign(kernel)
        multipliers[other.inner.kernel.path] = block.multiplier(power)
    plain.layers[-1].set_weights(branched.layers[-1].get_weights())
    return branched, plain, multipliers


def batches(steps, batch=8):
    rng = np.random.default_rng(1)
    for _ in range(steps):
        yield rng.normal(0.2, 1, (batch, 6, 6, 4)), rng.normal(size=(batch, 3))


def train(model, optimizer, steps):
    model.compile(optimizer, "mse")
    return [float(model.train_on_batch(x, y)) for x, y in batches(steps)]


def distance(model, other):
    """The largest difference of merged kernels, to the largest kernel value."""
    pairs = zip(kernels(model), kernels(other), strict=True)
    return max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs)


def outputs(model):
    x = next(batches(1))[0]
    return array(model(x, training=True)), array(model(x, training=False))


SGDS = {
    "one step": (lambda: SGD(0.1), 1),
    "momentum": (lambda: SGD(0.1, momentum=0.9), 6),
    "all": (lambda: SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1), 6),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sgd"),
    [*((name, "all") for name in NETWORKS), ("groups", "one step"), ("groups", "momentum")],
)
def test_wrapped_sgd_on_the_plain_network_is_sgd_on_the_branches(float64, name, sgd):
    make, steps = SGDS[sgd]
    branched, plain, multipliers = pair(NETWORKS[name])
    start = kernels(plain)
    losses = train(branched, make(), steps)
    wrapped = train(plain, RepOptimizer(make(), multipliers), steps)
    np.testing.assert_allclose(wrapped, losses, rtol=1e-10)
    assert distance(plain, branched) < 1e-10
    for actual, expected in zip(outputs(plain), outputs(branched), strict=True):
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=1e-10 * np.abs(expected).max()
        )
    moved = [np.abs(a - b).max() for a, b in zip(kernels(plain), start, strict=True)]
    assert min(moved) > 1e-3


@pytest.mark.slow
def test_plain_sgd_is_something_else(float64):
    branched, plain, _ = pair(NETWORKS["with identity"])
    train(branched, SGD(0.1), 1)
    train(plain, SGD(0.1), 1)
    assert distance(plain, branched) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with identity", "groups"])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_wrapped_adam_multiplies_the_steps(float64, name, kind):
    """Up to epsilon."""
    branched, plain, multipliers = pair(NETWORKS[name], power=1)
    optimizer = RepOptimizer(kind(0.01, epsilon=1e-14), multipliers, scale_updates=True)
    losses = train(branched, kind(0.01, epsilon=1e-14), 5)
    wrapped = train(plain, optimizer, 5)
    np.testing.assert_allclose(wrapped, losses, rtol=1e-6)
    assert distance(plain, branched) < 1e-6


@pytest.mark.slow
def test_products_of_gradients_alone_do_not_change_adam(float64):
    branched, plain, multipliers = pair(NETWORKS["with identity"], power=1)
    train(branched, Adam(0.01), 3)
    train(plain, RepOptimizer(Adam(0.01), multipliers), 3)
    assert distance(plain, branched) > 1e-3


# The target stage.


def searched():
    """A search model whose scales are not what they started at."""
    search = network(CSLABlock, NETWORKS["groups"], trainable_scales=True)
    rng = np.random.default_rng(0)
    for block in blocks(search):
        for scaled in block.inner.children:
            scaled.gain.assign(rng.uniform(0.5, 2, block.filters))
    return search


@pytest.mark.slow
def test_target_stage_starts_from_fresh_weights_and_the_searched_scales():
    search = searched()
    target = network(ConvBNBlock, NETWORKS["groups"], kernel_initializer="ones")
    optimizer = repopt(SGD(0.1, momentum=0.9), search, target)
    for block, plain in zip(blocks(search), blocks(target), strict=True):
        gains = [array(scaled.gain) for scaled in block.inner.children]
        shape = plain.inner.kernel.shape
        expected = np.ones(shape) * gains[0]
        expected[1, 1] += gains[1]
        multiplier = np.ones(shape) * gains[0] ** 2
        multiplier[1, 1] += gains[1] ** 2
        if len(gains) == 3:  # 4 channels in two groups: input channel o mod 2 for output o
            for channel in range(4):
                expected[1, 1, channel % 2, channel] += gains[2][channel]
                multiplier[1, 1, channel % 2, channel] += 1
        np.testing.assert_allclose(plain.inner.kernel, expected, rtol=1e-6)
        np.testing.assert_allclose(
            optimizer.multipliers[plain.inner.kernel.path], multiplier, rtol=1e-6
        )
    assert len(optimizer.multipliers) == 2 and not optimizer.scale_updates
    assert np.isfinite(train(target, optimizer, 2)).all()


def test_target_stage_draws_the_targets_own_initial_values():
    search, targets = searched(), []
    for _ in range(2):
        target = network(ConvBNBlock, NETWORKS["groups"])
        repopt(SGD(0.1), search, target)
        targets.append(kernels(target))
    for first, second in zip(*targets, strict=True):
        assert np.abs(first - second).min() > 0


def test_target_stage_multiplies_adams_steps_by_first_powers():
    search, target = searched(), network(ConvBNBlock, NETWORKS["groups"])
    optimizer = repopt(AdamW(1e-3), search, target)
    assert optimizer.scale_updates
    block, plain = blocks(search)[1], blocks(target)[1]
    corner = optimizer.multipliers[plain.inner.kernel.path][0, 0, 0]
    np.testing.assert_allclose(corner, array(block.inner.children[0].gain), rtol=1e-6)
    assert not repopt(AdamW(1e-3), search, target, scale_updates=False).scale_updates


def test_strides_of_the_target_decide_on_the_identity():
    search = network(CSLABlock, [{"filters": 4, "strides": 2}], identity_scale=3.0)
    target = network(ConvBNBlock, [{"filters": 4}], kernel_initializer="zeros")
    repopt(SGD(0.1), search, target)
    np.testing.assert_array_equal(kernels(target)[0][1, 1], 3 * np.eye(4))
    target = network(ConvBNBlock, [{"filters": 4, "strides": 2}], kernel_initializer="zeros")
    repopt(SGD(0.1), network(CSLABlock, [{"filters": 4}]), target)
    assert not kernels(target)[0].any()


def test_models_that_do_not_match():
    search, target = searched(), network(ConvBNBlock, NETWORKS["groups"])
    with pytest.raises(ValueError, match="search must have CSLABlocks"):
        repopt(SGD(0.1), target, target)
    with pytest.raises(ValueError, match="ConvBNBlock called 'block1'"):
        repopt(SGD(0.1), search, network(ConvBNBlock, NETWORKS["groups"][:1]))
    with pytest.raises(ValueError, match="equal filters. Received for 'block0': 4 and 6"):
        repopt(SGD(0.1), search, network(ConvBNBlock, NETWORKS["without identity"]))


# An optimizer like any.


def small(**options):
    """A compiled plain network with multipliers on its first block."""
    model = network(ConvBNBlock, NETWORKS["with identity"])
    kernel = blocks(model)[0].inner.kernel
    multipliers = {kernel.path: np.random.default_rng(2).uniform(0, 3, kernel.shape)}
    model.compile(RepOptimizer(SGD(0.1, momentum=0.9), multipliers), "mse", **options)
    return model


def one_variable(optimizer, multiplier, gradient, **options):
    """What a variable of ones becomes in one step."""
    variable = keras.Variable(np.ones(len(gradient)), name="kernel")
    other = keras.Variable(np.ones(len(gradient)), name="other")
    wrapped = RepOptimizer(optimizer, {variable.path: np.array(multiplier)}, **options)
    gradient = keras.ops.convert_to_tensor(gradient, "float32")
    wrapped.apply([gradient, gradient], [variable, other])
    return array(variable), array(other)


def test_gradients_are_multiplied_before_clipping_and_weight_decay():
    optimizer = SGD(1.0, clipvalue=0.5, weight_decay=0.25)
    variable, other = one_variable(optimizer, [0.1, 10.0], [2.0, 0.1])
    np.testing.assert_allclose(variable, [0.75 - 0.2, 0.75 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(other, [0.75 - 0.5, 0.75 - 0.1], rtol=1e-6)


def test_scale_updates_multiplies_gradient_and_step():
    variable, other = one_variable(SGD(1.0), [0.5, 2.0], [0.5, 0.5], scale_updates=True)
    np.testing.assert_allclose(variable, [1 - 0.125, 1 - 2.0], rtol=1e-6)
    np.testing.assert_allclose(other, [0.5, 0.5], rtol=1e-6)


def test_missing_gradients_and_some_of_the_variables():
    variables = [keras.Variable(np.ones(2), name=name) for name in "abc"]
    optimizer = RepOptimizer(SGD(1.0), {"b": [2.0, 3.0]})
    optimizer.build(variables)
    one = keras.ops.ones(2)
    with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['b'\]"):
        optimizer.apply([one, None, one])
    optimizer.apply([one, one], [variables[2], variables[1]])
    values = [array(variable).tolist() for variable in variables]
    assert values == [[0, 0], [-1, -2], [-1, -1]]


def test_learning_rate_iterations_and_exclusions_are_the_wrapped_optimizers():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.5, 0.25])
    inner = SGD(schedule, weight_decay=0.1)
    optimizer = RepOptimizer(inner, {"kernel": [1.0]})
    variable = keras.Variable([1.0], name="kernel")
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    for expected, rate in ((0.5, 0.25), (0.25, 0.25)):
        optimizer.apply([keras.ops.ones(1)], [variable])
        assert float(variable.numpy()[0]) == expected
        assert float(optimizer.learning_rate) == rate
    assert int(optimizer.iterations) == int(inner.iterations) == 2
    optimizer = RepOptimizer(SGD(0.5), {})
    optimizer.learning_rate = 0.125
    assert float(optimizer.inner_optimizer.learning_rate) == 0.125


@pytest.mark.slow
def test_learning_rate_callbacks():
    model = small()
    x, y = next(batches(1, 16))
    model.fit(
        x,
        y,
        epochs=2,
        verbose=0,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))],
    )
    assert float(model.optimizer.inner_optimizer.learning_rate) == pytest.approx(0.05)


@pytest.mark.slow
def test_a_saved_model_goes_on_as_if_it_had_not_stopped(tmp_path):
    model = small()
    for x, y in batches(2):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is RepOptimizer
    (expected,), (actual,) = (m.optimizer.multipliers.values() for m in (model, loaded))
    np.testing.assert_array_equal(actual, expected)
    for variable, other in zip(
        loaded.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(array(variable), array(other))
    for x, y in batches(3):
        assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    for variable, other in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(array(variable), array(other))


def test_config_is_text_and_enough():
    model = small()
    config = json.loads(json.dumps(model.optimizer.get_config()))
    copy = RepOptimizer.from_config(config)
    assert isinstance(copy.inner_optimizer, SGD) and copy.inner_optimizer.momentum == 0.9
    assert copy.scale_updates is False and copy.name == model.optimizer.name
    for path, expected in model.optimizer.multipliers.items():
        assert copy.multipliers[path].dtype == expected.dtype
        np.testing.assert_array_equal(copy.multipliers[path], expected)


def test_config_of_a_large_kernel_is_small():
    block = CSLABlock(256)
    block.build((None, 8, 8, 256))
    optimizer = RepOptimizer(SGD(0.1), {"kernel": block.multiplier().astype("float32")})
    assert len(json.dumps(optimizer.get_config())) < 9 * 256 * 256 / 20


@pytest.mark.slow
def test_tensorflow_checkpoints(tmp_path):
    model = small()
    train_steps = list(batches(4))
    for x, y in train_steps[:2]:
        model.train_on_batch(x, y)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{tmp_path}/one")
    expected = [model.train_on_batch(x, y) for x, y in train_steps[2:]]
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).read(path)
    assert int(model.optimizer.iterations) == 2
    assert [model.train_on_batch(x, y) for x, y in train_steps[2:]] == expected


@pytest.mark.slow
@pytest.mark.parametrize("scale_updates", [False, True])
def test_compiled_steps_equal_eager_ones(scale_updates):
    start, results = None, []
    for options in ({"run_eagerly": True}, {"jit_compile": True}):
        model = small(**options)
        model.optimizer.scale_updates = scale_updates
        start = start or model.get_weights()
        model.set_weights(start)
        for x, y in batches(3):
            model.train_on_batch(x, y)
        results.append(kernels(model))
    for eager, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale_updates", [False, True])
def test_two_replicas_step_as_one(two_replicas, scale_updates):
    def make():
        model = small()
        model.optimizer.scale_updates = scale_updates
        return model

    single = make()
    with two_replicas.scope():
        mirrored = make()
    mirrored.set_weights(single.get_weights())
    x, y = next(batches(1, 16))
    for model in (single, mirrored):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    for actual, expected in zip(kernels(mirrored), kernels(single), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    multiplier = mirrored.optimizer.variables[2].value
    first, second = map(array, two_replicas.experimental_local_results(multiplier))
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_loss_scaling_goes_around():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = small()
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    finally:
        keras.config.set_dtype_policy("float32")
    reference = small()
    reference.set_weights(model.get_weights())
    start = kernels(model)[0]
    x, y = next(batches(1))
    for m in (model, reference):
        m.train_on_batch(x, y)
    moved, expected = kernels(model)[0] - start, kernels(reference)[0] - start
    assert np.linalg.norm(moved - expected) < 0.1 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("sgd", "keras.optimizers.Optimizer. Received: 'sgd'"),
        (keras.optimizers.LossScaleOptimizer(SGD(0.1)), "LossScaleOptimizer must be around"),
        (SGD(0.1, loss_scale_factor=8.0), "loss_scale_factor.* Received: 8.0"),
    ],
)
def test_optimizers_that_cannot_be_wrapped(optimizer, message):
    with pytest.raises(ValueError, match=message):
        RepOptimizer(optimizer, {})


def test_multipliers_that_do_not_fit():
    variables = [keras.Variable(np.ones((2, 3)), name=name) for name in ("a", "b", "b")]
    for multipliers, message in (
        ({"c": np.ones((2, 3))}, "'c' must be one of the 3 .* a key that fits 0"),
        ({"b": np.ones((2, 3))}, "'b' must be one of the 3 .* a key that fits 2"),
        ({3: np.ones((2, 3))}, "3 must be one of the 3 .* a key that fits 0"),
        ({"a": np.ones((3,))}, r"'a' .* shape \(2, 3\). Received: shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            RepOptimizer(SGD(0.1), multipliers).build(variables)


def test_variables_that_it_does_not_know():
    one = keras.ops.ones(1)
    optimizer = RepOptimizer(SGD(0.1), {})
    with pytest.raises(ValueError, match="trainable_variables must be given first"):
        optimizer.apply([one])
    optimizer.apply([one], [keras.Variable([1.0], name="known")])
    with pytest.raises(ValueError, match="built with.* Received: 'unknown'"):
        optimizer.apply([one], [keras.Variable([1.0], name="unknown")])


PROGRAM = """
import keras, sys
import numpy as np
from repq_tf.layers import ConvBNBlock
from repq_tf.optimizers import RepOptimizer

assert keras.backend.backend() == "jax"
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(16, 6, 6, 4)), rng.normal(size=(16, 4, 4, 4))


def trained(wrap, scale_updates=False):
    block = ConvBNBlock(4, padding="valid", name="block", kernel_initializer="he_normal")
    model = keras.Sequential([keras.Input((6, 6, 4)), block])
    kernel = block.inner.kernel
    kernel.assign(np.random.default_rng(1).normal(size=kernel.shape))
    multipliers = {kernel.path: np.full(kernel.shape, 4.0)} if wrap else {}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer = RepOptimizer(optimizer, multipliers, scale_updates)
    model.compile(optimizer, "mse")
    start = np.array(kernel)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    return np.array(kernel) - start, model

plain, _ = trained(False)
for scale_updates, factor in ((False, 4), (True, 16)):
    moved, model = trained(True, scale_updates)
    np.testing.assert_allclose(moved, factor * plain, rtol=1e-4, atol=1e-6)
    model.save(sys.argv[1])
    loaded = keras.models.load_model(sys.argv[1])
    for m in (model, loaded):
        m.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert int(loaded.optimizer.iterations) == 2
    for a, b in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
print("equal")
"""


@pytest.mark.slow(10)
def test_jax(tmp_path):
    path = str(tmp_path / "model.keras")
    status, output, errors = forks.run(PROGRAM, path, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert status == 0 and output.strip() == "equal", errors
