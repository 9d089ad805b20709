"""A network of two blocks, so that whole runs take seconds."""

from repq_tf import models
from repq_tf.keras_api import keras
from repq_tf.layers import ACBlock, ConvBNBlock, RepVGGBlock
from repq_tf.models.registry import register
from repq_tf.train.tasks.classification.task import Classification
from repq_tf.train.tasks.super_resolution.task import SuperResolution


def network(block, name, classes, input_shape, width=1.0, **options):
    """Two blocks, a residual sum and a classifier."""
    images = keras.Input(input_shape, name="image")
    channels = int(16 * width)
    x = block(channels, 3, strides=2, activation="relu", name="first", **options)(images)
    y = block(channels, 3, name="second", **options)(x)
    x = keras.layers.ReLU(name="relu")(keras.layers.Add(name="add")([x, y]))
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(images, keras.layers.Dense(classes, name="logits")(x), name=name)


def tiny_ac(**options):
    """The re-parameterized network."""
    return network(ACBlock, "tiny_ac", **options)


def tiny_sigmoid(**options):
    """A network that TFMOT cannot quantize."""
    model = tiny_ac(**options)
    y = keras.layers.Activation("sigmoid", name="probabilities")(model.output)
    return keras.Model(model.input, y)


def tiny_repvgg(**options):
    """The same with an identity branch."""
    return network(RepVGGBlock, "tiny_repvgg", **options)


def tiny_plain(**options):
    """Its plain twin."""
    return network(ConvBNBlock, "tiny_plain", **options)


def tiny_ecbsr(scale, channels, **options):
    """ECBSR of three blocks."""
    return models.ecbsr(1, 4, scale, channels, **options)


def register_models():
    """Makes the networks known to `--model`; for processes that run nothing else."""
    register(tiny_ecbsr, task="super_resolution")
    register(tiny_plain)
    register(tiny_sigmoid, plain="tiny_plain")
    register(tiny_ac, plain="tiny_plain")


def write_no_picture(figure, file, **options):
    """In place of `Figure.savefig`, which takes a fifth of a tiny run: an empty file."""
    if not hasattr(file, "write"):
        with open(file, "wb"):
            pass


def draw_nothing():
    """Leaves all pictures empty; for processes that run nothing else."""
    from matplotlib.figure import Figure

    Figure.savefig = write_no_picture


class TinyTask(Classification):
    """Classification by a network of two blocks, whatever `--model` says."""

    def build(self, name, **options):
        shape = self.images.image_shape
        known = {"ac_resnet18": tiny_ac, "repvgg_tiny": tiny_repvgg}
        return known.get(name, tiny_plain)(
            classes=len(self.images.class_names), input_shape=shape, **options
        )

    def compile(self, model, optimizer=None, jit_compile="auto"):
        super().compile(model, optimizer, jit_compile)
        model.run_eagerly = optimizer is None  # six batches take less than their graph's making


class TinyUpscaling(SuperResolution):
    """Super resolution by three blocks, whatever `--model` says."""

    def build(self, name, **options):
        channels = 1 if self._settings.color == "y" else 3
        return tiny_ecbsr(self._settings.scale, channels, merged=True, **options)
