"""Makes the `.keras` files here, one of each layer, that later versions must load.

    python -m tests.keras_files.make

Those that exist stay as they are: a changed one would prove nothing. A new layer comes with a
file of its own: a function here, and its name in `MODELS`.
"""

import zipfile
from pathlib import Path

import keras
import numpy as np

from repq_tf import layers
from repq_tf.layers.activations import gelu_approximate

HERE = Path(__file__).parent
SHAPE = (5, 4, 2)

# Options besides the filters.
BLOCKS = {
    "ACBlock": {},
    "CSLABlock": {"trainable_scales": True},
    "ConvBNBlock": {},
    "ConvBlock": {},
    "DiracConv": {},
    "DiverseBranchBlock": {},
    "ECB": {"identity": True},
    "ExpandNet": {"rate": 2},
    "MobileOneBlock": {"branches": 2},
    "OREPABlock": {},
    "OREPARepVGGBlock": {},
    "OREPAStem": {"kernel_size": 5},
    "QARepVGGBlock": {},
    "RepVGGBlock": {"custom_l2": 1e-4, "oabn_k": 2.0},
    "WeightNormConv": {},
}


def float_blocks():
    """Every block in floating point, and the float layers beside them."""
    inputs = keras.Input(SHAPE, name="image")
    outputs = {
        name: getattr(layers, name)(2, activation="relu", name=name, **options)(inputs)
        for name, options in BLOCKS.items()
    }
    x = layers.ConvBlock(8, strides=2, padding=1, name="before")(inputs)
    x = layers.DepthToSpace(2, name="DepthToSpace")(x)
    outputs["DepthToSpace"] = x
    outputs["SqueezeExcite"] = layers.SqueezeExcite(2, name="SqueezeExcite")(x)
    flat = keras.layers.Flatten(name="flat")(x)
    outputs["DenseBlock"] = layers.DenseBlock(3, name="DenseBlock")(flat)
    return keras.Model(inputs, outputs, name="float_blocks")


def quantized_blocks():
    """Every block on its quantized merged kernel, with the modes of statistics in turn."""
    modes = ("restored", "batch", "estimate", "sample", "running")
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    outputs = {}
    for index, (name, options) in enumerate(BLOCKS.items()):
        options = {
            "bn_statistics": modes[index % len(modes)],
            "weight_bits": 2 + index % 7,
            "per_channel": index % 4 != 3,
            **options,
        }
        block = getattr(layers, name)(2, name=name, **options)
        y, scale = block(x, step)
        outputs[name], _ = layers.Quantize(6, name=f"{name}_quantize")(y, scale)
    flat = keras.layers.Flatten(name="flat")(x)
    y, scale = layers.DenseBlock(3, weight_bits=4, name="DenseBlock")(flat, step)
    outputs["DenseBlock"], _ = layers.Quantize(8, name="DenseBlock_quantize")(y, scale)
    return keras.Model(inputs, outputs, name="quantized_blocks")


def quantized_layers():
    """Every quantized layer beside the blocks, at 8 bits and below, and at 16."""
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    wide, wide_step = layers.Quantize(16, name="wide_quantize")(inputs)
    pooling = layers.QuantizedAveragePooling2D
    sampling = layers.QuantizedUpSampling2D
    outputs = {
        "Quantize": layers.Quantize(3, step=0.25, name="Quantize")(x)[0],
        "Add": layers.QuantizedAdd(6, activation="relu6", name="Add")(x, x, step, step)[0],
        "AddWide": layers.QuantizedAdd(16, name="AddWide")(wide, wide, wide_step, wide_step)[0],
        "Multiply": layers.QuantizedMultiply(8, name="Multiply")(x, x, step, step)[0],
        "Mean": layers.QuantizedMean(8, keepdims=True, name="Mean")(x, step)[0],
        "MeanWide": layers.QuantizedMean(16, name="MeanWide")(wide, wide_step)[0],
        "AveragePooling": pooling((2, 3), padding="same", name="AveragePooling")(x, step),
        "LeakyReLU": layers.QuantizedLeakyReLU(0.2, name="LeakyReLU")(x, step),
        "PReLU": layers.QuantizedPReLU(5, name="PReLU")(x, step)[0],
        "PReLUWide": layers.QuantizedPReLU(16, name="PReLUWide")(wide, wide_step)[0],
        "Sigmoid": layers.QuantizedSigmoid(name="Sigmoid")(x, step)[0],
        "HardSigmoid": layers.QuantizedHardSigmoid(name="HardSigmoid")(x, step)[0],
        "Nearest": sampling((1, 2), name="Nearest")(x, step),
        "Bilinear": sampling(3, "bilinear", name="Bilinear")(x, step),
    }
    return keras.Model(inputs, outputs, name="quantized_layers")


def softmax():
    """The softmax, which is younger than the other quantized layers."""
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    outputs = {"Softmax": layers.QuantizedSoftmax(name="Softmax")(x, step)[0]}
    return keras.Model(inputs, outputs, name="softmax")


def functions():
    """Functions of single values, differences, slices, and dense layers with a batch norm."""
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    flat = keras.layers.Flatten(name="flat")(x)
    y, scale = layers.DenseBNBlock(3, weight_bits=4, name="DenseBNBlock")(flat, step)
    elu = keras.layers.ELU(0.5, name="elu")
    outputs = {
        "Lookup": layers.QuantizedLookup(elu, 6, name="Lookup")(x, step)[0],
        "Tanh": layers.QuantizedTanh(name="Tanh")(x, step)[0],
        "Subtract": layers.QuantizedSubtract(6, name="Subtract")(x, x, step, step)[0],
        "Slice": layers.Slice((1, None, None), (None, -1, None), (2, 1, 1), name="Slice")(x),
        "DenseBNBlock": layers.Quantize(8, name="DenseBNBlock_quantize")(y, scale)[0],
    }
    return keras.Model(inputs, outputs, name="functions")


def transposed():
    """Quantized transposed convolutions, of both paddings."""
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    outputs = {}
    for name, padding in (("ConvTransposeBlock", "same"), ("ConvTransposeBNBlock", "valid")):
        options = {"kernel_size": 3, "upsampling": 2, "padding": padding, "weight_bits": 5}
        y, scale = getattr(layers, name)(2, name=name, **options)(x, step)
        outputs[name], _ = layers.Quantize(6, name=f"{name}_quantize")(y, scale)
    return keras.Model(inputs, outputs, name="transposed")


def embedding():
    """Unit vectors, and a function that Keras has no name for."""
    inputs = keras.Input(SHAPE, name="image")
    x, step = layers.Quantize(8, name="image_quantize")(inputs)
    gelu = keras.layers.Activation(gelu_approximate, name="gelu")
    kind = layers.QuantizedUnitNormalization
    outputs = {
        "GELU": layers.QuantizedLookup(gelu, 6, name="GELU")(x, step)[0],
        "UnitNormalization": kind(name="UnitNormalization")(x, step)[0],
    }
    return keras.Model(inputs, outputs, name="embedding")


_MAKERS = (
    *(float_blocks, quantized_blocks, quantized_layers, softmax, functions, transposed),
    embedding,
)
MODELS = {make.__name__: make for make in _MAKERS}


def images():
    """The images that the expected outputs are of."""
    return np.random.default_rng(0).normal(0, 1, (3, *SHAPE)).astype("float32")


def randomize(model):
    """Gives the weights values that no initializer has."""
    rng = np.random.default_rng(1)
    fixed = [layer for layer in model.layers if getattr(layer, "fixed_step", None)]
    prescribed = {id(weight) for layer in fixed for weight in layer.weights}
    for weight in model.weights:
        if id(weight) in prescribed:
            continue
        values, name = np.asarray(weight), weight.path.split("/")[-1]
        if name in ("initial_step", "moving_variance"):
            values = np.exp(rng.normal(-4 if name == "initial_step" else 0, 0.3, values.shape))
        else:
            values = values + rng.normal(0, 0.3, values.shape)
        weight.assign(values.astype("float32"))


def outputs(model):
    """The outputs of a model of `MODELS`, by name."""
    return {key: np.asarray(value) for key, value in model(images()).items()}


def save(model, path):
    """Saves a model in as few bytes as can be: Keras does not compress."""
    model.save(path)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, data in content.items():
            file.writestr(name, data)


def main():
    """Makes the files that are not there."""
    for name, build in MODELS.items():
        if (HERE / f"{name}.npz").exists():
            continue
        keras.utils.set_random_seed(0)
        model = build()
        randomize(model)
        save(model, HERE / f"{name}.keras")
        np.savez_compressed(HERE / f"{name}.npz", **outputs(model))


if __name__ == "__main__":
    main()
