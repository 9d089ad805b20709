"""Networks whose channels differ, and what the tests of post-training ask of them."""

import keras
import numpy as np

from repq_tf.calibration.images import store_images
from repq_tf.graphs import read_graph
from repq_tf.post_training.features import measure_features

layers = keras.layers
array = keras.ops.convert_to_numpy


def unbalance(model, seed=0, spread=1.5, dead=0.1):
    """Multiplies filters by random numbers, some by almost nothing; biases get values."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        name, shape = weight.path.rsplit("/", 1)[-1], tuple(weight.shape)
        if "kernel" in name and len(shape) > 1:
            channels = shape[-2:] if "depthwise" in weight.path else shape[-1:]
            gain = np.exp(rng.normal(0, spread, channels))
            gain = np.where(rng.random(channels) < dead, 1e-20, gain)
            weight.assign(array(weight) * gain)
        elif name == "bias":
            weight.assign(rng.normal(0, 0.3, shape))
    return model


def ranges_of_features(model, x):
    """The largest magnitude of every tensor."""
    features = measure_features(read_graph(model), store_images(x, model, 64, None)[0], False)
    return {tensor: found.largest.max() for tensor, found in features.items()}


def images(model, count=24, seed=0):
    """Random ones; of a model with several inputs, a list."""
    rng, shapes = np.random.default_rng(seed), [tensor.shape[1:] for tensor in model.inputs]
    x = [rng.normal(0.3, 1, (count, *shape)).astype("float32") for shape in shapes]
    return x if len(x) > 1 else x[0]
