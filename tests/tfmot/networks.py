"""A network with every kind of layer, and its training, on tf_keras."""

import numpy as np
import tensorflow_model_optimization as tfmot

import repq_tf
from repq_tf.keras_api import keras

annotate = tfmot.quantization.keras.quantize_annotate_model
annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
apply = tfmot.quantization.keras.quantize_apply


def images(count=64, size=12):
    """Images whose label can be read off their colour."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    x = rng.normal(0, 0.5, (count, size, size, 3)) + 1.5 * np.eye(3)[labels][:, None, None]
    return x.astype("float32"), labels


def network(size=12):
    layers, ours = keras.layers, repq_tf.layers
    inputs = keras.Input((size, size, 3), name="image")
    x = ours.ACBlock(8, activation="relu", name="ac")(inputs)
    y = ours.RepVGGBlock(8, name="vgg")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU(6.0, name="relu6")(layers.BatchNormalization(name="bn")(x))
    a = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    b = layers.Conv2D(4, 1, activation="relu", name="pointwise")(x)
    x = layers.Concatenate(name="concat")([a, b])
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x), name="net")


def train(model, x, y, epochs=2, rate=0.02):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
    return model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history
