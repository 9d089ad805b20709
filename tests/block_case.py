"""The tests that every block goes through. A new block's test is data:

class TestMyBlock(BlockCase):
    block = MyBlock
    options = {"filters": 6}
    weights = '''
        sum/wide_bn/gamma (6,)
        ...
    '''
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import repq_tf
from repq_tf.branches import MODES, BatchNorm, NumpyReading
from repq_tf.layers import Quantize
from tests.branches.expressions import randomize
from tests.marks import slow
from tests.reference import convolution

ops = keras.ops
array = ops.convert_to_numpy


def tensor(value):
    return ops.convert_to_tensor(value, keras.config.floatx())


VARIANTS = {
    "as it is": {},
    "stride 2": {"strides": 2},
    "stride (2, 1)": {"strides": (2, 1)},
    "valid": {"padding": "valid"},
    "padding 1": {"padding": 1},
    "padding ((2, 0), (0, 1)), stride 2": {"padding": ((2, 0), (0, 1)), "strides": 2},
    "even kernel": {"kernel_size": (2, 4)},
    "even kernel, stride 2": {"kernel_size": (4, 2), "strides": 2},
    "large stride": {"strides": 4},
    "relu": {"activation": "relu"},
}


class BlockCase:
    """Hooks: what a subclass says about its block."""

    block = None
    options = {}  # arguments of the constructor
    input_shape = (7, 6, 4)  # without the batch; one odd, one even size
    weights = ""  # one "path (shape)" a line, in float training
    modes = MODES  # of the statistics, where the block has batch norms to merge
    gradient_bits = 4  # fewer may clip an identity's tap in all channels
    variants = VARIANTS  # further options under which branches == merged must hold

    # What the tests are made of.

    def make(self, seed=0, dead=False, **options):
        """A built block whose weights and statistics are random, some variances about 0."""
        block = self.block(**{**self.options, "name": "block", **options})
        block.build((None, *self.input_shape))
        randomize(block.expression, seed, dead)
        if block.restored is not None:
            randomize(block.restored, seed + 1, dead=False)
        if block.weight_quantizer is not None:
            block.weight_quantizer.initialize(block.inner.merge().kernel)
        return block

    def features(self, batch=8, seed=0, step=None, size=None):
        """Features after a ReLU; with `step`, on its grid; `size` changes height and width."""
        shape = (*size, self.input_shape[-1]) if size else self.input_shape
        x = np.random.default_rng(seed).normal(0.3, 1, (batch, *shape))
        x = np.maximum(x, 0)
        if step is not None:
            x = np.rint(np.clip(x / step, 0, 255)) * step
        return x.astype(keras.config.dtype_policy().variable_dtype)

    def model(self, quantized=False, seed=0, **options):
        """A model of the block; `quantized` puts a quantizer before it."""
        block = self.make(seed, **options)
        inputs = keras.Input(self.input_shape)
        if quantized:
            layer = Quantize(8, signed=False, name="input_quantize")
            x, step = layer(inputs)
            layer.activation_quantizer.set_step(0.02)
            return keras.Model(inputs, block(x, step)[0])
        return keras.Model(inputs, block(inputs))

    def targets(self, model, batch=8):
        """Targets that an affine map of the features cannot reach."""
        return np.random.default_rng(9).normal(size=(batch, *model.output_shape[1:]))

    def step(self, block, x, training=True):
        """Output and the gradient of every trainable weight of a random linear loss."""
        with tf.GradientTape() as tape:
            y = block(x, training=training)
            loss = ops.sum(y * np.random.default_rng(1).normal(size=y.shape))
        variables = block.trainable_variables
        return array(y), [array(g) for g in tape.gradient(loss, [v.value for v in variables])]

    @staticmethod
    def copy(source, target):
        """Gives a block the branches of another."""
        weights = zip(target.expression.weights, source.expression.weights, strict=True)
        for variable, value in weights:
            variable.assign(value)

    @staticmethod
    def cancelling(block):
        """Weights without a gradient, with the reason.

        A batch norm with batch moments takes away every constant before it: the betas and
        biases inside it and, where it follows the convolution, those of the whole kernel.
        """
        of_batch = block.bn_statistics in ("batch", "estimate", "sample")
        rooted = block.root is not None and block.bn_statistics != "running"

        def constants(node, normalized):
            inside = normalized or (of_batch and isinstance(node, BatchNorm))
            for child in getattr(node, "children", ()):
                yield from constants(child, inside)
            for name in ("beta", "bias"):
                if normalized and getattr(node, name, None) is not None:
                    yield getattr(node, name).path

        return set(constants(block.inner, rooted))

    # One function, two readings.

    @pytest.mark.parametrize(
        ("dtype", "tolerance"), [("float32", 1e-5), slow("float64", 1e-12)]
    )
    def test_branches_equal_the_merged_kernel(self, dtype, tolerance, request):
        """On random sizes, gammas of both signs, and variances near zero."""
        if dtype == "float64":
            request.getfixturevalue("float64")
        rng = np.random.default_rng(0)

        def close(actual, expected, name):
            largest = np.abs(expected).max()
            np.testing.assert_allclose(actual, expected, 0, tolerance * largest, err_msg=name)

        for number, (name, options) in enumerate(self.variants.items()):
            block = self.make(number, dead=number % 2 == 0, **options)
            merged = self.make(merged=True, restore_batch_norm=False, **options)
            self.copy(block, merged)
            flat = len(self.input_shape) == 1
            size = None if flat else tuple(rng.integers(5, 11, 2))
            x = self.features(2, number, size=size)
            y = array(block(x))
            close(array(merged(x)), y, name)
            affine = block.merge(NumpyReading())
            images = x[:, None, None, :] if flat else x
            window = block.window(images.shape[1:3])
            direct = convolution(
                images, affine.kernel, affine.bias, affine.groups, block.strides, window
            )
            close(y, array(block.activation(direct)).reshape(y.shape), name)

    @pytest.mark.slow
    def test_training_merged_with_batch_moments_is_training_the_branches(self, float64):
        """RepQ-BN without a quantizer: the same outputs, gradients and moving statistics."""
        for name, options in self.variants.items():
            block = self.make(**options)
            merged = self.make(merged=True, bn_statistics="batch", **options)
            self.copy(block, merged)
            x = self.features(6)
            y, expected = self.step(block, x)
            y_merged, actual = self.step(merged, x)
            np.testing.assert_allclose(y_merged, y, atol=1e-9, err_msg=name)
            for variable, one, other in zip(
                block.trainable_variables, actual, expected, strict=True
            ):
                message = f"{name}: {variable.path}"
                np.testing.assert_allclose(one, other, atol=1e-7, err_msg=message)
            for one, other in zip(
                merged.non_trainable_variables, block.non_trainable_variables, strict=True
            ):
                message = f"{name}: {other.path}"
                np.testing.assert_allclose(
                    array(one), array(other), atol=1e-10, err_msg=message
                )

    # Training.

    @pytest.mark.slow
    def test_every_weight_gets_a_gradient_through_the_quantized_kernel(self, float64):
        for mode in self.modes:
            for bits in (8, 4, 2):
                block = self.make(weight_bits=bits, bn_statistics=mode, activation="relu")
                _, gradients = self.step(block, self.features(16))
                cancelling = self.cancelling(block)
                largest = max(np.abs(g).max() for g in gradients)
                for variable, gradient in zip(
                    block.trainable_variables, gradients, strict=True
                ):
                    name = f"{mode}, {bits} bits: {variable.path}"
                    assert np.isfinite(gradient).all(), name
                    if variable.path in cancelling:
                        assert np.abs(gradient).max() < 1e-9 * largest, name
                    elif bits >= self.gradient_bits:
                        assert np.abs(gradient).max() > 1e-6 * largest, name

    def test_the_quantized_kernel_is_on_its_grid(self):
        for bits in range(2, 9):
            block = self.make(weight_bits=bits)
            kernel = array(block.inner.merge().kernel)
            quantized = array(block.weight_quantizer(kernel))
            step = array(block.weight_quantizer.step)
            integers = np.rint(quantized / step)
            np.testing.assert_allclose(quantized, integers * step, rtol=1e-6)
            low = -127 if bits == 8 else -(2 ** (bits - 1))
            assert integers.min() >= low and integers.max() <= 2 ** (bits - 1) - 1
            assert len(np.unique(integers)) > min(3, bits)

    @pytest.mark.slow
    def test_every_mode_trains(self):
        for mode in self.modes:
            block = self.make(weight_bits=self.gradient_bits, bn_statistics=mode)
            before = [array(v) for v in block.variables]
            losses = self.train(block, steps=4)
            assert np.isfinite(losses).all() and losses[-1] < losses[0], (mode, losses)
            moving = {v.path for v in (block.root.statistics.weights if block.root else ())}
            if mode == "running":
                moving = set()
            elif mode != "restored":
                statistics = [v.path for v in block.expression.non_trainable_variables]
                moving |= {path for path in statistics if "/statistics/" in path}
            still = self.cancelling(block) | {"block/weight_quantizer/initial_step"}
            for variable, value in zip(block.variables, before, strict=True):
                moves = variable.path in moving if not variable.trainable else True
                if variable.path in still:
                    continue  # up to rounding errors of the gradient
                moved = not np.array_equal(array(variable), value)
                assert moved == moves, (mode, variable.path)

    @pytest.mark.parametrize("bits", [8, slow(4), slow(2)])
    def test_a_quantized_step_is_taken_at(self, bits):
        """It moves the weights and the steps, which stay positive."""
        block = self.make(weight_bits=bits)
        step = array(block.weight_quantizer.step)
        losses = self.train(block, steps=2)
        assert np.isfinite(losses).all()
        moved = array(block.weight_quantizer.step)
        assert (moved > 0).all() and not np.array_equal(moved, step)
        assert all(np.isfinite(array(v)).all() for v in block.variables)

    def train(self, block, steps):
        """The losses of some steps of gradient descent on fixed targets."""
        x, losses = self.features(16), []
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        targets = np.random.default_rng(9).normal(size=block(x).shape)
        for _ in range(steps):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(block(x, training=True) - targets))
            variables = block.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            optimizer.apply(gradients, variables)
            losses.append(float(loss))
        return losses

    @pytest.mark.slow
    def test_jit_compile(self):
        x = self.features()
        mode = "sample" if "sample" in self.modes else self.modes[0]  # it slices the batch
        quantized = {"weight_bits": 4, "bn_statistics": mode, "quantized": True}
        results = []
        for jit_compile in (False, True):
            parts = [self.model(), self.model(**quantized)]
            inputs = keras.Input(self.input_shape)
            model = keras.Model(inputs, [part(inputs) for part in parts])  # compiled as one
            # Eager steps are cheaper than a graph that nothing but this test runs.
            how = {"jit_compile": jit_compile, "run_eagerly": not jit_compile}
            model.compile(keras.optimizers.SGD(0.01), ["mse", "mse"], **how)
            targets = [self.targets(part) for part in parts]
            model.fit(x, targets, batch_size=8, epochs=2, verbose=0)
            results.append([array(v) for v in model.variables])
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", slow("mixed_float16")])
    def test_mixed_precision(self, policy):
        keras.config.set_dtype_policy(policy)
        try:
            for options in ({}, {"weight_bits": 4, "quantized": True}):
                model = self.model(**options)
                for variable in model.weights:
                    assert variable.dtype == "float32", variable.path
                x, y = self.features(), self.targets(model)
                half = policy.removeprefix("mixed_")
                assert model(x, training=True).dtype == half
                # Inference of a quantized block is exact, hence not in half precision.
                assert model(x).dtype == ("float32" if options else half)
                for layer in model.layers:
                    if isinstance(layer, Quantize):
                        assert layer(x, training=True)[0].dtype == half
                        assert layer(x)[1].dtype == "float32"
                model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
                assert np.isfinite(model.train_on_batch(x, y))
                assert all(np.isfinite(array(v)).all() for v in model.weights)
        finally:
            keras.config.set_dtype_policy("float32")

    # Several devices.

    @pytest.mark.slow
    def test_two_replicas_are_one_device(self, two_replicas, float64):
        """Synchronized moments: what one device computes on the same global batch."""
        cases = [{}, *({"weight_bits": 8, "bn_statistics": mode} for mode in self.modes)]
        x = self.features(16)

        def make():
            return [self.make(**options) for options in cases]

        def step(blocks, x, weights):
            values = [v.value for block in blocks for v in block.trainable_variables]
            with tf.GradientTape() as tape:
                outputs = [block(x, training=True) for block in blocks]
                loss = sum(ops.sum(y * w) for y, w in zip(outputs, weights, strict=True))
            return tape.gradient(loss, values)

        one = make()
        rng = np.random.default_rng(3)
        weights = [rng.normal(size=block(x).shape) for block in one]
        expected = step(one, x, weights)
        with two_replicas.scope():
            mirrored = make()

        def halves(array):
            def half(context):
                first = 8 * context.replica_id_in_sync_group
                return tf.constant(array[first : first + 8])

            return two_replicas.experimental_distribute_values_from_function(half)

        def run(x, weights):
            gradients = two_replicas.run(step, (mirrored, x, weights))
            return [two_replicas.reduce("SUM", g, axis=None) for g in gradients]

        actual = run(halves(x), [halves(w) for w in weights])
        names = [
            f"{options}: {v.path}"
            for options, block in zip(cases, one, strict=True)
            for v in block.trainable_variables
        ]
        largest = max(np.abs(array(g)).max() for g in expected)
        for name, g, other in zip(names, actual, expected, strict=True):
            np.testing.assert_allclose(
                array(g), array(other), rtol=1e-7, atol=1e-9 * largest, err_msg=name
            )
        for options, block, other in zip(cases, mirrored, one, strict=True):
            for variable, value in zip(
                block.non_trainable_variables, other.non_trainable_variables, strict=True
            ):
                name = f"{options}: {variable.path}"
                replicas = two_replicas.experimental_local_results(variable.value)
                replicas = [array(v) for v in replicas]
                assert len(replicas) == 2
                np.testing.assert_array_equal(*replicas, err_msg=name)
                np.testing.assert_allclose(
                    replicas[0], array(value), rtol=1e-10, atol=1e-12, err_msg=name
                )

    # Saving.

    @pytest.mark.slow
    def test_keras_file_round_trip(self, tmp_path):
        x = self.features(3)
        padding = {"padding": ((1, 0), (0, 2))} if len(self.input_shape) == 3 else {}
        for number, options in enumerate(
            (
                {},
                {"merged": True, "bn_statistics": "estimate", "literal_estimate": True},
                {"weight_bits": 4, "quantized": True, **padding},
                {"weight_bits": 3, "per_channel": False, "activation": "relu6"},
            )
        ):
            model = self.model(**options)
            path = tmp_path / f"{number}.keras"
            model.save(path)
            loaded = keras.models.load_model(path)
            np.testing.assert_array_equal(array(loaded(x)), array(model(x)))
            assert [v.path for v in loaded.variables] == [v.path for v in model.variables]
            for one, other in zip(loaded.variables, model.variables, strict=True):
                np.testing.assert_array_equal(array(one), array(other))
            block, twin = model.get_layer("block"), loaded.get_layer("block")
            # JSON knows no tuples.
            assert json.dumps(twin.get_config()) == json.dumps(block.get_config())

    def test_configuration(self):
        """Every argument comes back, also of a block that was never built."""
        options = {**self.options, "padding": (1, 2), "momentum": 0.7, "epsilon": 1e-3}
        if len(self.input_shape) == 3:
            options["kernel_size"] = (3, 5)
        block = self.block(**options, weight_bits=5, per_channel=False, name="some_name")
        config = block.get_config()
        for name, value in options.items():
            assert config[name] == value or callable(value), name
        assert (config["weight_bits"], config["name"]) == (5, "some_name")
        assert self.block.from_config(config).get_config() == config
        keras.saving.serialize_keras_object(block)

    def test_weight_names(self):
        block = self.make()
        lines = [f"{v.path.removeprefix('block/')} {tuple(v.shape)}" for v in block.weights]
        expected = [line.strip() for line in self.weights.strip().splitlines()]
        assert lines == expected

    # What the integer runtime computes.

    @pytest.mark.parametrize("bits", [8, slow(4), slow(2)])
    @pytest.mark.parametrize("roots", [slow("usual"), "negative, zero and tiny"])
    def test_the_integer_path_is_the_float_path_but_for_the_bias(self, bits, roots):
        """They differ by the bias's rounding: half a step of the `input x weight` grid."""
        step = 0.02
        for mode in self.modes:
            options = {} if roots == "usual" else {"restore_batch_norm": True}
            block = self.make(weight_bits=bits, bn_statistics=mode, **options)
            if roots != "usual":
                gamma = array(block.root.gamma).copy()
                gamma[:4] = (-0.7, 0.0, 1e-9, -1e-30)
                block.root.gamma.assign(gamma)
            x = self.features(3, step=step)
            fake = array(block(x))
            integer, grid = map(array, block(x, input_step=tensor(step)))
            *weights, groups = block.integer_weights(tensor(step))
            integers, scale, bias = (array(v).astype("float64") for v in weights)
            images = np.rint(x / np.float32(step))
            np.testing.assert_allclose(grid, scale * step, rtol=1e-6)
            assert (scale > 0).all() and (np.rint(integers) == integers).all()
            assert np.abs(integers).max() <= 2 ** (bits - 1)
            assert (np.rint(bias) == bias).all() and np.abs(bias).max() <= 2**30
            # A channel of vanishing gain loses its weights: nothing that 8 bits could see.
            spread = np.abs(fake).max() * 1e-5
            difference = np.abs(integer - fake)
            assert (difference <= 0.5001 * scale * step + spread).all()
            # And it is what integers give, whatever the block does to get there.
            images = images if x.ndim == 4 else images[:, None, None, :]
            total = convolution(
                images,
                integers,
                bias,
                groups,
                block.strides,
                block.window(images.shape[1:3]),
            )
            expected = (total * scale * step).reshape(fake.shape)
            # Whole numbers up to 2^24 are exact in float32; their grid's step is rounded.
            np.testing.assert_allclose(integer, expected, rtol=1e-6, atol=1e-12)

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [8, 4])
    def test_the_deployed_file_is_the_trained_block(self, bits, tmp_path):
        """Quantize, train, export: not one value differs; merge: plain Keras layers."""
        inputs = keras.Input(self.input_shape)
        model = keras.Model(inputs, self.make(activation="relu")(inputs))
        x = self.features(64)
        repq_tf.reestimate_batch_norm(model, x)
        merged = repq_tf.merge(model)
        y = array(model(x))
        np.testing.assert_allclose(array(merged(x)), y, atol=1e-5 * np.abs(y).max())
        rules = [("block", {"weight_bits": bits, "activation_bits": bits})]
        qat = repq_tf.quantize(model, rules=rules, calibration_data=x, verbose=False)
        error = array(qat(x)) - y
        assert np.sqrt(np.mean(error**2)) < {8: 0.02, 4: 0.3}[bits] * np.std(y)
        qat.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
        qat.fit(x, y * 0.9, batch_size=16, verbose=0)
        repq_tf.export_tflite(qat, tmp_path / "model.tflite")
        report = repq_tf.check_parity(qat, tmp_path / "model.tflite", x)
        assert report.equal_outputs == 1, report
        assert not any(layer.different for layer in report.layers), report

    def test_all_gammas_zero(self):
        """A batch norm that starts at zero, as in residual blocks, is a constant."""
        block = self.make(weight_bits=8, restore_batch_norm=True)
        block.root.gamma.assign(ops.zeros_like(block.root.gamma))
        for beta in (0.0, 0.7):
            block.root.beta.assign(beta * ops.ones_like(block.root.beta))
            y, _ = block(self.features(2), input_step=tensor(0.02))
            np.testing.assert_allclose(array(y), beta, rtol=1e-5)

    # Errors.

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("weight_bits", 1),
            ("weight_bits", 9),
            ("weight_bits", "eight"),
            ("bn_statistics", "exact"),
            ("padding", "full"),
            ("padding", -1),
            ("padding", 1.5),
            ("padding", (1, 2, 3)),
            ("padding", ((1, 1),)),
            ("padding", ((1, -1), (0, 0))),
            ("padding", None),
            ("filters", 0),
            ("filters", 2.5),
            ("strides", 0),
            ("strides", 1.5),
            ("groups", 0),
            ("groups", -1),
            ("groups", 3),
            ("sample_fraction", 0),
            ("sample_fraction", 2),
            ("momentum", 1.5),
            ("epsilon", -1e-3),
        ],
    )
    def test_bad_arguments_are_named(self, argument, value):
        with pytest.raises(ValueError, match=argument):
            block = self.block(**{**self.options, argument: value})
            block.build((None, *self.input_shape))

    def test_bad_inputs_are_named(self):
        with pytest.raises(ValueError, match="the input must be"):
            self.block(**self.options).build((None, 8, 4, 4, 2))
        block = self.block(**self.options)
        block.build((None, *self.input_shape))
        *size, channels = self.input_shape
        with pytest.raises(ValueError, match=f"expected axis -1 .* to have value {channels}"):
            block(np.zeros((2, *size, channels + 1), "float32"))
