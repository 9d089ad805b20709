"""Distillation: a network learns what another one makes of the same images."""

from collections.abc import Iterable
from typing import Any

from repq_tf.arguments import boolean, number
from repq_tf.keras_api import Tensor, Variable, check_same_keras, keras, ops, tree

# Half a level of the grid that the integer runtime prescribes for probabilities.
_LEAST_PROBABILITY = 2.0**-9


class Distiller(keras.Model):
    """A model whose `fit` trains a student on the labels and on what a teacher makes of them.

    The loss is the compiled one of the student's outputs, and in training beside it

        w_l T^2 KL(softmax(t / T) || softmax(s / T)) + w_f sum_k |s_k / |s_k| - t_k / |t_k||^2

    with s and t the logits of student and teacher, T the temperature (Hinton et al., arXiv
    1503.02531, whose T^2 keeps the size of the gradient), s_k and t_k the features of named
    layers, each image's a vector of length 1 (as in arXiv 1612.03928); both are means over the
    images. The labels' part is weighed by `loss_weights` of `compile`, and without a loss there
    is none. The student may be quantized and the teacher float, of any architecture with the
    same outputs. Both run once a training step; in `evaluate` and `predict` the student alone.

    What is trained, and its metrics, are the student's; the teacher stays as it is, also what
    of it is trainable. `save`, and so callbacks that save the best model, writes the student.

    Args:
        student: the model to train; Functional or Sequential if `features` are named.
        teacher: a trained model of the same inputs and outputs; likewise.
        features: names of layers that both models have, or pairs of a layer's name in the
            student and in the teacher. Of a layer with several outputs, as quantized layers
            have them, the first is taken.
        temperature: T, positive.
        logits_weight: w_l; 0 leaves the term out.
        features_weight: w_f.
        from_logits: whether outputs are logits; False: probabilities, whose logarithms are
            logits. Those of less than half a level of their grid count as that.
        name: of the model.

    Raises:
        ValueError: an argument is bad, or outputs or features differ in their shapes.

    Example:
        >>> quantized = repq_tf.quantize(model, bits=4, calibration_data=images[:512])
        >>> distiller = repq_tf.Distiller(quantized, model, features=["block_5", "block_9"])
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        >>> distiller.fit(images, labels)
        >>> repq_tf.export_tflite(quantized, "model.tflite")
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        features: Iterable[str | tuple[str, str]] = (),
        temperature: float = 4.0,
        logits_weight: float = 1.0,
        features_weight: float = 1.0,
        from_logits: bool = True,
        name: str = "distiller",
    ) -> None:
        for model, kind in ((student, "student"), (teacher, "teacher")):
            check_same_keras(model, kind)
            if not isinstance(model, keras.Model):
                raise ValueError(f"{kind} must be a Keras model. Received: {model!r}")
        # The policy of the student, by which `compile` scales losses in half precision.
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        self.temperature = number(temperature, "temperature", above=0)
        self.logits_weight = number(logits_weight, "logits_weight", least=0)
        self.features_weight = number(features_weight, "features_weight", least=0)
        self.from_logits = boolean(from_logits, "from_logits")
        pairs = _pairs(features)
        _check_outputs(student, teacher)
        self.student, self.teacher = student, teacher
        self._of_student = _with_features(student, [name for name, _ in pairs], "student")
        self._of_teacher = _with_features(teacher, [name for _, name in pairs], "teacher")
        _check_shapes(self._of_student, self._of_teacher, pairs)

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The student's outputs; in training, what it is told to learn is added as a loss.

        Args:
            inputs: of both models.
            training: whether the student is trained.
        """
        if not training:
            return self.student(inputs, training=False)
        outputs, features = self._of_student(inputs, training=True)
        wanted, targets = tree.map_structure(
            ops.stop_gradient, self._of_teacher(inputs, training=False)
        )
        if self.logits_weight:
            pairs = zip(tree.flatten(wanted), tree.flatten(outputs), strict=True)
            self.add_loss(self.logits_weight * sum(self._divergence(*pair) for pair in pairs))
        if self.features_weight and features:
            pairs = zip(targets, features, strict=True)
            self.add_loss(self.features_weight * sum(_distance(*pair) for pair in pairs))
        return outputs

    def _divergence(self, wanted: Tensor, outputs: Tensor) -> Tensor:
        teacher, student = (
            ops.log_softmax(self._logits(values) / self.temperature)
            for values in (wanted, outputs)
        )
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        return self.temperature**2 * ops.mean(divergence)

    def _logits(self, outputs: Tensor) -> Tensor:
        outputs = ops.cast(outputs, "float32")
        if self.from_logits:
            return outputs
        return ops.log(ops.maximum(outputs, _LEAST_PROBABILITY))

    def save(self, filepath: Any, *args: Any, **options: Any) -> None:
        """Saves the student, as its own `save` does."""
        self.student.save(filepath, *args, **options)

    # The teacher keeps what is trainable of it, but is not trained here.

    @property
    def trainable_weights(self) -> list[Variable]:
        """The student's."""
        return self.student.trainable_weights

    @property
    def trainable_variables(self) -> list[Variable]:
        """The student's."""
        return self.student.trainable_variables

    @property
    def non_trainable_weights(self) -> list[Variable]:
        """The student's, and all of the teacher's."""
        return _others(self.weights, self.trainable_weights)

    @property
    def non_trainable_variables(self) -> list[Variable]:
        """The student's, and all of the teacher's."""
        return _others(self.variables, self.trainable_variables)


def _others(variables: Iterable[Variable], trained: Iterable[Variable]) -> list[Variable]:
    known = set(map(id, trained))
    return [variable for variable in variables if id(variable) not in known]


def _pairs(features: Any) -> list[tuple[str, str]]:
    """The names of layers in student and teacher."""
    pairs = []
    for item in [features] if isinstance(features, str) else features:
        pair = (item, item) if isinstance(item, str) else item
        whole = isinstance(pair, tuple | list) and len(pair) == 2
        if not whole or not all(isinstance(name, str) for name in pair):
            raise ValueError(
                "features must be names of layers, or pairs of a name in the student and one in"
                f" the teacher. Received: {item!r}"
            )
        pairs.append(tuple(pair))
    return pairs


def _with_features(model: keras.Model, names: list[str], kind: str) -> Any:
    """A function of inputs that returns a model's outputs and the features of its layers."""
    if not names:
        return lambda inputs, training: (model(inputs, training=training), [])
    known = {layer.name: layer for layer in model.layers}
    tensors = []
    for name in names:
        if name not in known:
            raise ValueError(
                f"features must name layers of the {kind}, {', '.join(known)}."
                f" Received: {name!r}"
            )
        try:
            tensors.append(tree.flatten(known[name].output)[0])
        except (AttributeError, ValueError) as error:
            raise ValueError(
                f"features: layer {name!r} of the {kind} has no features of its own: it is not"
                " called, or called more than once"
            ) from error
    # A Sequential model has an output only once it is called.
    outputs = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    return keras.Model(model.inputs, [outputs, tensors], name=f"{kind}_features")


def _check_outputs(student: keras.Model, teacher: keras.Model) -> None:
    """Refuses outputs that cannot be compared, of models that know theirs."""
    known = [getattr(model, "outputs", None) or () for model in (student, teacher)]
    mine, other = ([tuple(t.shape[1:]) for t in outputs] for outputs in known)
    if mine and other and mine != other:
        raise ValueError(
            "student and teacher must have outputs of the same shapes. Received:"
            f" {mine} and {other}"
        )


def _check_shapes(student: Any, teacher: Any, pairs: list[tuple[str, str]]) -> None:
    """Refuses features that cannot be compared."""
    if not pairs:
        return
    shapes = ([t.shape for t in model.output[1]] for model in (student, teacher))
    for pair, mine, other in zip(pairs, *shapes, strict=True):
        if tuple(mine[1:]) != tuple(other[1:]):
            raise ValueError(
                f"features {pair}: layers of student and teacher must have outputs of one"
                f" shape. Received: {tuple(mine[1:])} and {tuple(other[1:])}"
            )


def _distance(wanted: Tensor, features: Tensor) -> Tensor:
    """`|s / |s| - t / |t||^2` of each image, averaged."""
    teacher, student = (
        ops.normalize(ops.reshape(ops.cast(x, "float32"), (ops.shape(x)[0], -1)), axis=-1)
        for x in (wanted, features)
    )
    return ops.mean(ops.sum(ops.square(student - teacher), axis=-1))
