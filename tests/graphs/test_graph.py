"""Reading a model's graph, and building a model from it."""

import inspect
import sys

import keras
import numpy as np
import pytest

import repq_tf
from repq_tf.graphs import copy_layer, evaluate, read_graph, rebuild
from tests.quantization.networks import SHAPE, array, images, layers, residual

X = images(3)


class Gate(layers.Layer):
    """Takes a tensor by keyword, a list of tensors and plain arguments."""

    def call(self, x, pair, scale=1.0, other=None):
        return x * scale + pair[0] - 2 * pair[1] + 3 * other


def functional(function):
    def build():
        inputs = keras.Input(SHAPE, name="image")
        return keras.Model(inputs, function(inputs))

    return build


def conv(name, **options):
    options.setdefault("padding", "same")
    return layers.Conv2D(3, 3, name=name, **options)


def part(name, prefix=""):
    inputs = keras.Input(SHAPE)
    x = conv(f"{prefix}first")(inputs)
    return keras.Model(inputs, layers.Add(name=f"{prefix}sum")([x, inputs]), name=name)


def two_outputs(name):
    inputs = keras.Input(SHAPE)
    x = conv(f"{name}_conv")(inputs)
    return keras.Model(inputs, [x, layers.ReLU(name=f"{name}_relu")(x)], name=name)


def sequential():
    return keras.Sequential(
        [keras.Input(SHAPE), conv("a"), layers.BatchNormalization(), layers.Flatten()]
    )


def sequential_of_models():
    tail = keras.Sequential([conv("t"), layers.ReLU(name="r")], name="tail")
    return keras.Sequential([keras.Input(SHAPE), part("body"), tail, layers.Flatten()])


def branches(x):
    a, b = conv("a")(x), conv("b")(x)
    c = layers.Concatenate(name="cat")([a, layers.ReLU(name="r")(b), x])
    return layers.Add(name="sum")([conv("c")(c), a])


def shared(x):
    layer = conv("shared")
    return layers.Subtract(name="minus")([layer(layer(x)), layer(x)])


def called_elsewhere(x):
    """The layer's first call belongs to another model."""
    layer = conv("used_before")
    layer(keras.Input(SHAPE))
    y = layer(x)
    layer(y)
    return layers.ReLU(name="r")(y)


def several_outputs(x):
    a = conv("a")(x)
    return [a, conv("b")(a), a]


def nested(x):
    return layers.ReLU(name="r")(part("second", "s_")(part("first", "f_")(x)))


def nested_with_equal_names(x):
    return layers.ReLU(name="r")(part("second")(part("first")(x)))


def nested_twice(x):
    model = part("again")
    return layers.ReLU(name="r")(model(model(x)))


def nested_deeply(x):
    inputs = keras.Input(SHAPE)
    outer = keras.Model(inputs, layers.ReLU(name="r")(part("inner")(inputs)), name="outer")
    return layers.ReLU(name="r2")(outer(x))


def nested_two_outputs(x):
    a, b = two_outputs("pair")(x)
    return layers.Subtract(name="minus")([a, b])


def keywords(x):
    return Gate(name="gate")(x, [conv("a")(x), x], scale=0.5, other=conv("b")(x))


def backbone(x):
    """A part of another model, called on a new input, with a new head."""
    whole_input = keras.Input(SHAPE)
    inner = conv("inner")(whole_input)
    whole = keras.Model(whole_input, conv("dropped")(inner))
    features = keras.Model(whole.input, whole.get_layer("inner").output, name="features")
    return layers.Flatten(name="flat")(features(x))


MODELS = {
    "blocks": functional(residual),
    "branches": functional(branches),
    "shared layer": functional(shared),
    "called elsewhere": functional(called_elsewhere),
    "several outputs": functional(several_outputs),
    "one output in a list": functional(lambda x: [conv("a")(x)]),
    "sequential": sequential,
    "sequential of models": sequential_of_models,
    "nested": functional(nested),
    "nested, equal names": functional(nested_with_equal_names),
    "nested, called twice": functional(nested_twice),
    "nested deeply": functional(nested_deeply),
    "nested with two outputs": functional(nested_two_outputs),
    "tensors by keyword": functional(keywords),
    "backbone": functional(backbone),
}


def call(node, args, kwargs):
    return node.layer(*args, **kwargs)


def copies():
    """Applies copies with the nodes' names and the layers' weights."""
    made = {}

    def apply(node, args, kwargs):
        layer = made.setdefault(id(node.layer), copy_layer(node.layer, node.name))
        y = layer(*args, **kwargs)
        layer.set_weights(node.layer.get_weights())
        return y

    return apply


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_rebuild_reproduces_the_function(build):
    model = build()
    expected = model(X)
    graph = read_graph(model)
    assert not any(isinstance(node.layer, keras.Model) for node in graph.nodes.values())
    rebuilt = rebuild(graph, copies(), name="rebuilt")
    assert type(rebuilt(X)) is type(expected) and rebuilt.name == "rebuilt"
    assert not {id(layer) for layer in rebuilt.layers} & {id(layer) for layer in model.layers}
    for actual in (evaluate(graph, lambda node: X, call), rebuilt(X)):
        pairs = zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(array(one), array(other), rtol=1e-6, atol=1e-6)


class Swish(layers.Layer):
    """An activation with a weight, and a configuration that is not its attributes."""

    def __init__(self, activation="sigmoid", **options):
        super().__init__(**options)
        self.function = keras.activations.get(activation)
        self.beta = self.add_weight(shape=(), initializer="ones")
        self.built = True

    def call(self, x):
        return x * self.function(self.beta * x)

    def get_config(self):
        return {**super().get_config(), "activation": "sigmoid"}


def test_copies_share_no_weights_with_the_model():
    with keras.saving.custom_object_scope({"Swish": Swish}):
        build = functional(
            lambda x: Swish(name="s")(layers.Conv2D(2, 3, activation=Swish(), name="c")(x))
        )
        model = build()
        before = array(model(X))
        merged = repq_tf.merge(model)
    for layer in (merged.get_layer("c").activation, merged.get_layer("s")):
        layer.beta.assign(5.0)
    np.testing.assert_array_equal(array(model(X)), before)
    assert not np.allclose(array(merged(X)), before)


def test_a_network_too_deep_for_python_is_refused_with_what_to_do():
    x = inputs = keras.Input((2, 2, 3))
    for _ in range(150):
        x = layers.ReLU()(x)
    graph = read_graph(keras.Model(inputs, x))

    def twice(node, args, kwargs):
        return layers.ReLU()(layers.ReLU()(*args))

    before = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(len(inspect.stack(0)) + 250)
        with pytest.raises(ValueError, match=r"recursion limit, \d+; call sys\.setrecursion"):
            rebuild(graph, twice)
        sys.setrecursionlimit(10_000)
        rebuilt = rebuild(graph, twice)
        assert sum(isinstance(layer, layers.ReLU) for layer in rebuilt.layers) == 300
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_nodes_come_in_topological_order(build):
    graph, seen = read_graph(build()), set()
    for name, node in graph.nodes.items():
        assert node.name == name
        assert all(tensor.node in seen for tensor in node.inputs), name
        assert node.is_input == (not node.inputs), name
        seen.add(name)


def test_names_consumers_and_outputs():
    graph = read_graph(functional(shared)())
    inputs = {name: [t.node for t in node.inputs] for name, node in graph.nodes.items()}
    assert inputs == {
        "image": [],
        "shared": ["image"],
        "shared_call1": ["shared"],
        "shared_call2": ["image"],
        "minus": ["shared_call1", "shared_call2"],
    }
    assert len({id(node.layer) for node in graph.nodes.values()}) == 3
    assert {node.name for node in graph.consumers("image")} == {"shared", "shared_call2"}
    assert graph.is_output("minus") and not graph.is_output("shared")
    graph = read_graph(functional(nested)())
    inlined = ["first_f_first", "first_f_sum", "second_s_first", "second_s_sum"]
    assert list(graph.nodes) == ["image", *inlined, "r"]


def test_values_are_dropped_when_nobody_needs_them():
    """Otherwise calibration would hold every feature map of a network."""
    import weakref

    alive, most = [], []

    def apply(node, args, kwargs):
        alive.append(weakref.ref(y := np.add(args[0], 1).view(Array)))
        most.append(sum(ref() is not None for ref in alive))
        return y

    class Array(np.ndarray):
        pass

    inputs = x = keras.Input(SHAPE)
    for _ in range(12):
        x = layers.ReLU()(x)
    evaluate(read_graph(keras.Model(inputs, x)), lambda node: X, apply)
    assert max(most) <= 3


def test_what_is_no_graph_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    for model in (Subclassed(), 3, None, conv("a")):
        with pytest.raises(ValueError, match="model must be a Functional or Sequential"):
            read_graph(model)
    with pytest.raises(ValueError, match="'open' is not built"):
        read_graph(keras.Sequential([conv("a")], name="open"))


def test_a_nested_model_may_be_the_last_layer():
    x = keras.Input(SHAPE)
    model = keras.Model(x, part("last")(x))
    np.testing.assert_allclose(array(rebuild(read_graph(model), call)(X)), array(model(X)))


def test_outputs_by_key():
    x = keras.Input(SHAPE)
    model = keras.Model(x, {"a": conv("a")(x), "b": conv("b")(x)})
    merged = repq_tf.merge(model)(X)
    expected = model(X)
    assert set(merged) == {"a", "b"}
    for key in merged:
        np.testing.assert_allclose(array(merged[key]), array(expected[key]), atol=1e-6)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("last", [0, 1])
def test_a_nested_model_that_is_called_twice(sequential, last):
    """Outputs count its calls from another number than its readers do."""
    parts = [keras.Input((6, 6, 3)), keras.layers.Conv2D(3, 3, padding="same")]
    inner = keras.Sequential(parts)
    if not sequential:
        inner = keras.Model(inner.inputs[0], inner.outputs[0])
    inputs = keras.Input((6, 6, 3))
    first = inner(inputs)
    both = [first, inner(first)]
    model = keras.Model(inputs, [both[last], keras.layers.Add()(both)])
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 3)).astype("float32")
    once = np.asarray(inner(x))
    twice = np.asarray(inner(once))
    found = rebuild(read_graph(model), lambda n, args, kwargs: n.layer(*args, **kwargs))(x)
    for value, expected in zip(found, ((once, twice)[last], once + twice), strict=True):
        np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-5, atol=1e-5)
